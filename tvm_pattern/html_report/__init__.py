"""One self-contained HTML page on a network: how it was pruned, compiled, and where time goes."""

from .data import LayerFacts, ReportError, layer_facts, read_pruned
from .page import write_html

__all__ = ["LayerFacts", "ReportError", "layer_facts", "read_pruned", "write_html"]
