"""`case` and `detector`: each test that asks for them runs over every detector of every installed engine.

`@two_stage` (tests.reference.cases) limits a test to those with a region head.
"""

from __future__ import annotations

import pytest

from tests.reference.cases import CASES


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def case(request):
    return request.param


@pytest.fixture
def detector(case):
    return case.make()
