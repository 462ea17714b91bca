"""What signing refuses.

SigningError
├── InvalidKey      not a P-256 key in PEM
├── InvalidBundle   not a Sigstore bundle of ours, or its signature does not count
└── InvalidPolicy   the policy's file or its keys
"""


class SigningError(ValueError):
    """Base of everything that is raised here on purpose; the message says what was expected."""


class InvalidKey(SigningError):
    """A file that holds no ECDSA P-256 key in PEM."""


class InvalidBundle(SigningError):
    """A document that is no bundle, or one whose signature does not count; the message says why."""


class InvalidPolicy(SigningError):
    """A policy that cannot be followed; the message names the field."""
