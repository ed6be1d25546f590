"""trimtab on Ray Serve: an ingress, replicas of the server, and guides as deployments of their own."""
