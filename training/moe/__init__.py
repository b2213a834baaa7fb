"""MoE-GS: training its experts and its router, pruning, distilling, rendering."""
