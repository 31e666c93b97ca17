"""Every event that the model knows: its system, name, number, fields and text, in the order of the numbers."""

from kmemd.debug.trace_events import compaction, kmem, mappings, reclaim, writeback

EVENTS = tuple(
    sorted(
        (*kmem.EVENTS, *reclaim.EVENTS, *compaction.EVENTS, *mappings.EVENTS, *writeback.EVENTS),
        key=lambda event: event.id,
    )
)
