"""How many GPUs a load needs: what strategies cost, how long models take, and the queues between them."""
