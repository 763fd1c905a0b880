"""Many machines, the same bits."""
