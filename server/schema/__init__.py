"""The wire format: OpenAI's requests and responses, with vLLM's names for what OpenAI does not have."""
