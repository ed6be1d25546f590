"""How long models take: a roofline for GPUs by their data sheets, or what was measured on a machine."""
