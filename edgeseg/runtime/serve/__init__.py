"""The live page of a stream: overlay, counters, latency and class shares for a browser, and Prometheus metrics.

    page = Page(":8080", state, streams=["camera 0"])   # loopback; any other host wants a token
    page.put(shot, view)                                # costs nothing while nobody watches

The parts: `server` (the sink and its thread), `routes` (HTTP), `picture` (frame to JPEG), `access` (who may see it),
`metrics` (Prometheus); page.html, page.css, page.js, plot.js and icon.svg are all that a browser loads.
"""

from edgeseg.runtime.serve.server import Page

__all__ = ["Page"]
