"""The maths of the method, in torch and the standard library only; no detection framework, no configuration.

Read in this order:

    structures    conventions and value types
    views         the down-scaled view X^ and the pairs of pyramid levels      docs/method.md 2
    consistency   Eq. 2 and Eq. 3 of anchors and regions                       docs/method.md 3 and 4
    matching      Alg. 1, and Eq. 2 and Eq. 3 of queries                       docs/method.md 5
    reweighting   Eq. 5                                                        docs/method.md 6
    teacher       Eq. 4; its rate is in `schedules`                            docs/method.md 7

`boxes` is plain geometry, `divergence` the KL divergences, `targets` the hard targets of Tab. 4.
"""
