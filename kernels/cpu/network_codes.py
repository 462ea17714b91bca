"""How compiled steps are told of narrow networks: by these numbers, in these fields. Needs no compiler."""

OUTPUT, RESIDUAL, SUM = range(3)  # what a network may read: a block's output, the residual, both together
LINEAR, RELU, LEAKY_RELU, SIGMOID, SILU, TANH, GELU, GELU_TANH = range(8)
ACTIVATION_CODES = {
    "linear": LINEAR,
    "relu": RELU,
    "leaky_relu": LEAKY_RELU,
    "leakyrelu": LEAKY_RELU,
    "sigmoid": SIGMOID,
    "silu": SILU,
    "swish": SILU,
    "tanh": TANH,
    "gelu": GELU,
    "gelu_new": GELU_TANH,
    "gelu_pytorch_tanh": GELU_TANH,
}
NETWORK_FIELDS = ("down", "down_bias", "up", "up_bias", "width", "taps", "activation")
NETWORK_WIDTH = len(NETWORK_FIELDS)
