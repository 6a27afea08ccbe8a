"""`case` and `detector`: each test that asks for them runs over every detector of every installed engine.

`@dense`, `@two_stage`, `@one_stage` and `@query` (tests.reference.cases) limit a test to those with such heads.
"""

from __future__ import annotations

import pytest

from tests.reference.cases import CASES


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def case(request):
    if "timm" in request.param.name:
        pytest.importorskip("timm", reason="needs timm (pip install -e '.[laptop]')")
    return request.param


@pytest.fixture
def detector(case):
    return case.make()
