"""Plain float32 whatever surrounds a call, and everything given back."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch

from surroundings import SURROUNDINGS, products
from topkit.kernels.precision import full_precision


def plain() -> bool:
    made = torch.empty(0)
    ieee = [torch.backends.cuda.matmul.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision]  # type: ignore[attr-defined]
    return (
        made.device.type == "cpu"
        and made.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and {"ieee", "none"}.issuperset(ieee)
    )


@pytest.mark.parametrize("name", SURROUNDINGS)
def test_within_it_all_is_plain_and_behind_it_as_before(name):
    with SURROUNDINGS[name]():
        assert not plain()
        with full_precision():
            assert plain()
            with full_precision():
                assert plain()
            assert plain()
        assert not plain()
        with pytest.raises(ZeroDivisionError), full_precision():
            raise ZeroDivisionError
        assert not plain()
        assert full_precision()(plain)()
    assert plain()


def test_settings_of_the_process_come_back_when_the_last_thread_leaves():
    enter, leave = Barrier(2), Barrier(2)

    def first() -> None:
        with full_precision():
            enter.wait(10)
        leave.wait(10)

    def last() -> bool:
        enter.wait(10)
        with full_precision():
            leave.wait(10)
            return plain()

    with products("medium"), ThreadPoolExecutor(2) as pool:
        one, two = pool.submit(first), pool.submit(last)
        one.result(20)
        assert two.result(20)
        assert not plain()


def test_both_kinds_of_autocast_are_off():
    torch.set_autocast_enabled("cuda", True)
    try:
        with full_precision():
            assert not torch.is_autocast_enabled("cuda")
        assert torch.is_autocast_enabled("cuda")
    finally:
        torch.set_autocast_enabled("cuda", False)
