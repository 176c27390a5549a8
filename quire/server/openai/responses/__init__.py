"""OpenAI's `/v1/responses`: create, stream, continue from a stored response, read and delete stored ones."""
