"""A survey of published architectures: what lint says of each, and whether that is right.

    python -m benchmarks.survey --out out/survey        # one third, resumed where it stopped

``families`` splits what there is into three, ``shrink`` makes configurations small,
``architectures`` lists what is built, ``examine`` lints one of them in a process of its own,
``verdicts`` holds what a person judged.
"""
