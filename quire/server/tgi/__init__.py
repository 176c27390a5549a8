"""Text Generation Inference's protocol: `/generate`, `/generate_stream`, `POST /`, `/info`, `/chat_tokenize`, `/vertex`.

Its messages API is `/v1/chat/completions` of `server/openai`.
"""
