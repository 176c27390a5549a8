"""The API of llama.cpp's server, without its OpenAI routes."""
