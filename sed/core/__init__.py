"""The maths of the method, in torch and the standard library only; no framework, no configuration.

Read in this order: `structures` (conventions), `views` (METHOD 2), `consistency` (Eq. 2 and 3, METHOD 3 and
4), `reweighting` (Eq. 5, METHOD 6), `teacher` (Eq. 4) and `schedules` (METHOD 7); `boxes` is plain geometry.
"""
