"""The maths of the method, in torch and the standard library (matching also scipy); no framework, no configuration.

Read in this order:

    structures    conventions and data types
    views         the down-scaled view X^ and the pairs of pyramid levels      docs/method.md 2
    consistency   Eq. 2 and Eq. 3 of anchors and regions                       docs/method.md 3 and 4
    matching      Alg. 1, and Eq. 2 and Eq. 3 of queries                       docs/method.md 5
    reweighting   Eq. 5                                                        docs/method.md 6
    teacher       Eq. 4; its rate is in `schedules`                            docs/method.md 7

`boxes` is plain geometry, `divergence` the KL divergences, `targets` the hard targets of Tab. 4, `single_map` the pairs
of a detector without a pyramid, `precision` float32 under autocast.

[O] marks what the paper leaves open and how it is closed, [D] a deviation from it: docs/method.md.
"""
