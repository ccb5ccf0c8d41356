"""What the annotation of a setting allows."""

import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin


def takes(annotation: Any, *kinds: type) -> bool:
    """Whether a value of one of ``kinds``, or a closed choice of that kind, is allowed; what lists hold does not count."""
    origin = get_origin(annotation)
    if origin is Literal:
        return any(isinstance(choice, kinds) for choice in get_args(annotation))
    if origin is Annotated:
        return takes(get_args(annotation)[0], *kinds)
    if origin in (Union, types.UnionType):
        return any(takes(option, *kinds) for option in get_args(annotation))
    return annotation in kinds
