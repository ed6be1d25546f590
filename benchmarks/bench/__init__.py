"""Latency versus reward: run strategies over prompts against a server, and report what each gains and costs."""
