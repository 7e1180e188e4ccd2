"""The one thing that a client adds, and how a call that is refused reads."""

import grpc
from stubs import ADDRESS, KEY, OPTIONS, grpc_workflow


class Keyed(grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor):
    def intercept_unary_unary(self, go_on, details, request):
        return go_on(details._replace(metadata=KEY), request)

    intercept_unary_stream = intercept_unary_unary


def keyed_stub():
    kind = type(grpc_workflow.build_stub(ADDRESS))
    return kind(grpc.intercept_channel(grpc.insecure_channel(ADDRESS, options=OPTIONS), Keyed()))


def refused(ask, request):
    try:
        ask(request)
    except grpc.RpcError as error:
        return [error.code().name, error.details()]
    return ["OK", ""]
