"""SteerPlans inside vLLM: a logits processor that mixes the served model with small guides, request by request.

vLLM finds it by its entry point (`vllm.logits_processors`). How to use it: docs/vllm.md.
"""
