"""A gRPC client in Python: `quire serve --grpc-port 50051`, then this.

Generate the stub once (pip install grpcio-tools), in the language of your choice:

    python -m grpc_tools.protoc -I quire/server/grpc --python_out=. --grpc_python_out=. quire.proto
"""

import grpc
import quire_pb2
import quire_pb2_grpc

with grpc.insecure_channel("127.0.0.1:50051") as channel:
    stub = quire_pb2_grpc.InferenceStub(channel)
    request = quire_pb2.GenerateRequest(
        conversation={"messages": [{"role": "user", "content": "What is the capital of France?"}]},
        sampling={"max_tokens": 64, "temperature": 0},
    )
    for answer in stub.GenerateStream(request, timeout=60):
        print(answer.sequences[0].text, end="", flush=True)
    print()
