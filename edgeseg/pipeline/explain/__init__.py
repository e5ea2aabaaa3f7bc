"""Where the accuracy of a deployed engine went: by layer, by class, at boundaries, over time, and in pictures.

masks       FP32 and deployed masks beside each other: agreement, mIoU before and after, flicker, the worst frames
frames      which frames are looked at
emulate     the deployed engine as a graph that ONNX Runtime can look into
transplant  the quantization found in the bundle's graph, layer by layer
copies      the parts of graphs that it reads and copies
ir          the same for OpenVINO's IR
damage      what each layer loses, at its output and, alone, at the scores
rows        that as rows of a document, worst first, with the reason in words
run         all of it: `explain`
"""

from edgeseg.pipeline.explain.run import explain

__all__ = ["explain"]
