"""From measured numbers to tables, figures and experiment tracking.

A record (:mod:`~offset_equivariant.reporting.records`) is what one evaluation of one set of weights found, together
with everything needed to find it again. Tables, figures and the numbers of the README are rendered from records, next
to the paper's own values (:mod:`~offset_equivariant.reporting.paper`).

The modules are imported one by one: the training code needs records and tracking, and those that draw only where a
tracker is given the curves of a table.
"""
