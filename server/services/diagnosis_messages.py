"""A diagnosis as the wire has it."""

import math
from dataclasses import fields

from hotshoe.protos.v1 import registry_pb2
from hotshoe.registry.recipes.doctor import Diagnosis, Grade, LinearDiagnosis

_GRADES = {
    Grade.OK: registry_pb2.GRADE_OK,
    Grade.WARN: registry_pb2.GRADE_WARN,
    Grade.BAD: registry_pb2.GRADE_BAD,
    Grade.UNKNOWN: registry_pb2.GRADE_UNKNOWN,
}


def diagnosis_message(diagnosis: Diagnosis, *, with_linears: bool = True) -> registry_pb2.Diagnosis:
    """All of it, or all but the linears."""
    return registry_pb2.Diagnosis(
        grade=_GRADES[diagnosis.grade],
        headline=diagnosis.headline,
        advice=diagnosis.advice,
        exact=diagnosis.is_exact,
        intruders=diagnosis.intruders,
        affected_share=diagnosis.affected_share,
        strength=diagnosis.strength,
        linears=map(_linear_message, diagnosis.linears) if with_linears else (),
    )


def _linear_message(one: LinearDiagnosis) -> registry_pb2.LinearDiagnosis:
    message = registry_pb2.LinearDiagnosis(layer=one.linear.layer, target=one.linear.target)
    for name in [field.name for field in fields(one) if field.name != "linear"]:
        value = getattr(one, name)
        if value is None or (isinstance(value, float) and not math.isfinite(value)):
            continue
        setattr(message, name, value)
    return message
