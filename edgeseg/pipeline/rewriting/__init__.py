"""The run that makes a trained network cheaper, read from `run` down; behind `edgeseg rewrite` and `build --rewrite`.

wish       what it shall become            students   what its layers could become, and networks within a budget
budgets    which options keep to a budget  layer_times, layer_graph   what an option takes on the target
recovery   learning from the original      document   what was done and measured
"""
