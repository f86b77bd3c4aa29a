import pytest

from fewbits._base import errors
from fewbits._base.errors import Exit, FewbitsError


def tree(root: type[FewbitsError] = FewbitsError) -> list[type[FewbitsError]]:
    """Returns the classes of this module below a root, the root included."""
    below = [c for c in root.__subclasses__() if c.__module__ == errors.__name__]
    return [root, *(leaf for child in below for leaf in tree(child))]


@pytest.mark.parametrize("kind", tree(), ids=lambda c: c.__name__)
def test_an_error_prints_its_message_and_slug_and_has_an_exit_code(kind):
    error = kind("what, where, why, what to do", slug="a-slug")
    assert str(error) == "what, where, why, what to do [a-slug]"
    assert (error.message, error.slug) == ("what, where, why, what to do", "a-slug")
    assert error.exit_code in Exit
    assert error.exit_code not in (Exit.OK, Exit.NOT_MET)


@pytest.mark.parametrize("kind", tree()[1:], ids=lambda c: c.__name__)
def test_the_tree_is_drawn_in_the_docstring(kind):
    line = next(line for line in (errors.__doc__ or "").splitlines() if f" {kind.__name__} " in f"{line} ")
    drawn = [word for word in line.split() if word.isdigit()]
    assert drawn in ([], [str(int(kind.exit_code))])


def test_every_class_has_the_contracts_exit_code():
    codes = {c.__name__: int(c.exit_code) for c in tree()}
    assert codes == {
        "FewbitsError": 1, "UsageError": 2, "UnknownNameError": 2, "InputError": 4, "ModelError": 4, "DataError": 4,
        "NumericsError": 4,
        "TargetError": 5, "ResourceError": 6, "SecurityError": 7, "VerificationError": 8,
    }  # fmt: skip


def test_an_error_without_a_slug_is_a_mistake_of_ours():
    with pytest.raises(TypeError):
        FewbitsError("no slug")  # type: ignore[call-arg]
