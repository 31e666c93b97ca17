"""Write-back (include/trace/events/writeback.h)."""

from kmemd.debug.trace_format import Event

EVENTS = (
    Event(
        "writeback",
        "sb_clear_inode_writeback",
        285,
        "dev_t dev; ino_t ino; unsigned long state; __u16 mode; unsigned long dirtied_when",
        '"dev %d,%d ino %lu dirtied %lu state %s mode 0%o", ((unsigned int) ((REC->dev) >> 20)), ((unsigned int) '
        "((REC->dev) & ((1U << 20) - 1))), (unsigned long)REC->ino, REC->dirtied_when, __print_flags(REC->state, "
        '"|", $INODE_STATES ), REC->mode',
    ),
    Event(
        "writeback",
        "sb_mark_inode_writeback",
        286,
        "dev_t dev; ino_t ino; unsigned long state; __u16 mode; unsigned long dirtied_when",
        '"dev %d,%d ino %lu dirtied %lu state %s mode 0%o", ((unsigned int) ((REC->dev) >> 20)), ((unsigned int) '
        "((REC->dev) & ((1U << 20) - 1))), (unsigned long)REC->ino, REC->dirtied_when, __print_flags(REC->state, "
        '"|", $INODE_STATES ), REC->mode',
    ),
    Event(
        "writeback",
        "writeback_dirty_inode_enqueue",
        287,
        "dev_t dev; ino_t ino; unsigned long state; __u16 mode; unsigned long dirtied_when",
        '"dev %d,%d ino %lu dirtied %lu state %s mode 0%o", ((unsigned int) ((REC->dev) >> 20)), ((unsigned int) '
        "((REC->dev) & ((1U << 20) - 1))), (unsigned long)REC->ino, REC->dirtied_when, __print_flags(REC->state, "
        '"|", $INODE_STATES ), REC->mode',
    ),
    Event(
        "writeback",
        "writeback_lazytime_iput",
        288,
        "dev_t dev; ino_t ino; unsigned long state; __u16 mode; unsigned long dirtied_when",
        '"dev %d,%d ino %lu dirtied %lu state %s mode 0%o", ((unsigned int) ((REC->dev) >> 20)), ((unsigned int) '
        "((REC->dev) & ((1U << 20) - 1))), (unsigned long)REC->ino, REC->dirtied_when, __print_flags(REC->state, "
        '"|", $INODE_STATES ), REC->mode',
    ),
    Event(
        "writeback",
        "writeback_lazytime",
        289,
        "dev_t dev; ino_t ino; unsigned long state; __u16 mode; unsigned long dirtied_when",
        '"dev %d,%d ino %lu dirtied %lu state %s mode 0%o", ((unsigned int) ((REC->dev) >> 20)), ((unsigned int) '
        "((REC->dev) & ((1U << 20) - 1))), (unsigned long)REC->ino, REC->dirtied_when, __print_flags(REC->state, "
        '"|", $INODE_STATES ), REC->mode',
    ),
    Event(
        "writeback",
        "writeback_single_inode",
        290,
        "char name[32]; ino_t ino; unsigned long state; unsigned long dirtied_when; unsigned long "
        "writeback_index; long nr_to_write; unsigned long wrote; ino_t cgroup_ino",
        '"bdi %s: ino=%lu state=%s dirtied_when=%lu age=%lu index=%lu to_write=%ld wrote=%lu cgroup_ino=%lu", '
        'REC->name, (unsigned long)REC->ino, __print_flags(REC->state, "|", $INODE_STATES ), REC->dirtied_when, '
        "(jiffies - REC->dirtied_when) / 250, REC->writeback_index, REC->nr_to_write, REC->wrote, (unsigned "
        "long)REC->cgroup_ino",
    ),
    Event(
        "writeback",
        "writeback_single_inode_start",
        291,
        "char name[32]; ino_t ino; unsigned long state; unsigned long dirtied_when; unsigned long "
        "writeback_index; long nr_to_write; unsigned long wrote; ino_t cgroup_ino",
        '"bdi %s: ino=%lu state=%s dirtied_when=%lu age=%lu index=%lu to_write=%ld wrote=%lu cgroup_ino=%lu", '
        'REC->name, (unsigned long)REC->ino, __print_flags(REC->state, "|", $INODE_STATES ), REC->dirtied_when, '
        "(jiffies - REC->dirtied_when) / 250, REC->writeback_index, REC->nr_to_write, REC->wrote, (unsigned "
        "long)REC->cgroup_ino",
    ),
    Event(
        "writeback",
        "writeback_sb_inodes_requeue",
        292,
        "char name[32]; ino_t ino; unsigned long state; unsigned long dirtied_when; ino_t cgroup_ino",
        '"bdi %s: ino=%lu state=%s dirtied_when=%lu age=%lu cgroup_ino=%lu", REC->name, (unsigned long)REC->ino, '
        '__print_flags(REC->state, "|", $INODE_STATES ), REC->dirtied_when, (jiffies - REC->dirtied_when) / 250, '
        "(unsigned long)REC->cgroup_ino",
    ),
    Event(
        "writeback",
        "balance_dirty_pages",
        293,
        "char bdi[32]; unsigned long limit; unsigned long setpoint; unsigned long dirty; unsigned long "
        "bdi_setpoint; unsigned long bdi_dirty; unsigned long dirty_ratelimit; unsigned long task_ratelimit; "
        "unsigned int dirtied; unsigned int dirtied_pause; unsigned long paused; long pause; unsigned long "
        "period; long think; ino_t cgroup_ino",
        '"bdi %s: limit=%lu setpoint=%lu dirty=%lu bdi_setpoint=%lu bdi_dirty=%lu dirty_ratelimit=%lu '
        "task_ratelimit=%lu dirtied=%u dirtied_pause=%u paused=%lu pause=%ld period=%lu think=%ld "
        'cgroup_ino=%lu", REC->bdi, REC->limit, REC->setpoint, REC->dirty, REC->bdi_setpoint, REC->bdi_dirty, '
        "REC->dirty_ratelimit, REC->task_ratelimit, REC->dirtied, REC->dirtied_pause, REC->paused, REC->pause, "
        "REC->period, REC->think, (unsigned long)REC->cgroup_ino",
    ),
    Event(
        "writeback",
        "bdi_dirty_ratelimit",
        294,
        "char bdi[32]; unsigned long write_bw; unsigned long avg_write_bw; unsigned long dirty_rate; unsigned "
        "long dirty_ratelimit; unsigned long task_ratelimit; unsigned long balanced_dirty_ratelimit; ino_t "
        "cgroup_ino",
        '"bdi %s: write_bw=%lu awrite_bw=%lu dirty_rate=%lu dirty_ratelimit=%lu task_ratelimit=%lu '
        'balanced_dirty_ratelimit=%lu cgroup_ino=%lu", REC->bdi, REC->write_bw, REC->avg_write_bw, '
        "REC->dirty_rate, REC->dirty_ratelimit, REC->task_ratelimit, REC->balanced_dirty_ratelimit, (unsigned "
        "long)REC->cgroup_ino",
    ),
    Event(
        "writeback",
        "global_dirty_state",
        295,
        "unsigned long nr_dirty; unsigned long nr_writeback; unsigned long background_thresh; unsigned long "
        "dirty_thresh; unsigned long dirty_limit; unsigned long nr_dirtied; unsigned long nr_written",
        '"dirty=%lu writeback=%lu bg_thresh=%lu thresh=%lu limit=%lu dirtied=%lu written=%lu", REC->nr_dirty, '
        "REC->nr_writeback, REC->background_thresh, REC->dirty_thresh, REC->dirty_limit, REC->nr_dirtied, "
        "REC->nr_written",
    ),
    Event(
        "writeback",
        "writeback_queue_io",
        296,
        "char name[32]; unsigned long older; long age; int moved; int reason; ino_t cgroup_ino",
        '"bdi %s: older=%lu age=%ld enqueue=%d reason=%s cgroup_ino=%lu", REC->name, REC->older, REC->age, '
        "REC->moved, __print_symbolic(REC->reason, $WB_REASONS), (unsigned long)REC->cgroup_ino",
    ),
    Event(
        "writeback",
        "wbc_writepage",
        297,
        "char name[32]; long nr_to_write; long pages_skipped; int sync_mode; int for_kupdate; int for_background; "
        "int for_reclaim; int range_cyclic; long range_start; long range_end; ino_t cgroup_ino",
        '"bdi %s: towrt=%ld skip=%ld mode=%d kupd=%d bgrd=%d reclm=%d cyclic=%d start=0x%lx end=0x%lx '
        'cgroup_ino=%lu", REC->name, REC->nr_to_write, REC->pages_skipped, REC->sync_mode, REC->for_kupdate, '
        "REC->for_background, REC->for_reclaim, REC->range_cyclic, REC->range_start, REC->range_end, (unsigned "
        "long)REC->cgroup_ino",
    ),
    Event(
        "writeback",
        "writeback_bdi_register",
        298,
        "char name[32]",
        '"bdi %s", REC->name',
    ),
    Event(
        "writeback",
        "writeback_wake_background",
        299,
        "char name[32]; ino_t cgroup_ino",
        '"bdi %s: cgroup_ino=%lu", REC->name, (unsigned long)REC->cgroup_ino',
    ),
    Event(
        "writeback",
        "writeback_pages_written",
        300,
        "long pages",
        '"%ld", REC->pages',
    ),
    Event(
        "writeback",
        "writeback_wait",
        301,
        "char name[32]; long nr_pages; dev_t sb_dev; int sync_mode; int for_kupdate; int range_cyclic; int "
        "for_background; int reason; ino_t cgroup_ino",
        '"bdi %s: sb_dev %d:%d nr_pages=%ld sync_mode=%d kupdate=%d range_cyclic=%d background=%d reason=%s '
        'cgroup_ino=%lu", REC->name, ((unsigned int) ((REC->sb_dev) >> 20)), ((unsigned int) ((REC->sb_dev) & '
        "((1U << 20) - 1))), REC->nr_pages, REC->sync_mode, REC->for_kupdate, REC->range_cyclic, "
        "REC->for_background, __print_symbolic(REC->reason, $WB_REASONS), (unsigned long)REC->cgroup_ino",
    ),
    Event(
        "writeback",
        "writeback_written",
        302,
        "char name[32]; long nr_pages; dev_t sb_dev; int sync_mode; int for_kupdate; int range_cyclic; int "
        "for_background; int reason; ino_t cgroup_ino",
        '"bdi %s: sb_dev %d:%d nr_pages=%ld sync_mode=%d kupdate=%d range_cyclic=%d background=%d reason=%s '
        'cgroup_ino=%lu", REC->name, ((unsigned int) ((REC->sb_dev) >> 20)), ((unsigned int) ((REC->sb_dev) & '
        "((1U << 20) - 1))), REC->nr_pages, REC->sync_mode, REC->for_kupdate, REC->range_cyclic, "
        "REC->for_background, __print_symbolic(REC->reason, $WB_REASONS), (unsigned long)REC->cgroup_ino",
    ),
    Event(
        "writeback",
        "writeback_start",
        303,
        "char name[32]; long nr_pages; dev_t sb_dev; int sync_mode; int for_kupdate; int range_cyclic; int "
        "for_background; int reason; ino_t cgroup_ino",
        '"bdi %s: sb_dev %d:%d nr_pages=%ld sync_mode=%d kupdate=%d range_cyclic=%d background=%d reason=%s '
        'cgroup_ino=%lu", REC->name, ((unsigned int) ((REC->sb_dev) >> 20)), ((unsigned int) ((REC->sb_dev) & '
        "((1U << 20) - 1))), REC->nr_pages, REC->sync_mode, REC->for_kupdate, REC->range_cyclic, "
        "REC->for_background, __print_symbolic(REC->reason, $WB_REASONS), (unsigned long)REC->cgroup_ino",
    ),
    Event(
        "writeback",
        "writeback_exec",
        304,
        "char name[32]; long nr_pages; dev_t sb_dev; int sync_mode; int for_kupdate; int range_cyclic; int "
        "for_background; int reason; ino_t cgroup_ino",
        '"bdi %s: sb_dev %d:%d nr_pages=%ld sync_mode=%d kupdate=%d range_cyclic=%d background=%d reason=%s '
        'cgroup_ino=%lu", REC->name, ((unsigned int) ((REC->sb_dev) >> 20)), ((unsigned int) ((REC->sb_dev) & '
        "((1U << 20) - 1))), REC->nr_pages, REC->sync_mode, REC->for_kupdate, REC->range_cyclic, "
        "REC->for_background, __print_symbolic(REC->reason, $WB_REASONS), (unsigned long)REC->cgroup_ino",
    ),
    Event(
        "writeback",
        "writeback_queue",
        305,
        "char name[32]; long nr_pages; dev_t sb_dev; int sync_mode; int for_kupdate; int range_cyclic; int "
        "for_background; int reason; ino_t cgroup_ino",
        '"bdi %s: sb_dev %d:%d nr_pages=%ld sync_mode=%d kupdate=%d range_cyclic=%d background=%d reason=%s '
        'cgroup_ino=%lu", REC->name, ((unsigned int) ((REC->sb_dev) >> 20)), ((unsigned int) ((REC->sb_dev) & '
        "((1U << 20) - 1))), REC->nr_pages, REC->sync_mode, REC->for_kupdate, REC->range_cyclic, "
        "REC->for_background, __print_symbolic(REC->reason, $WB_REASONS), (unsigned long)REC->cgroup_ino",
    ),
    Event(
        "writeback",
        "writeback_write_inode",
        306,
        "char name[32]; ino_t ino; int sync_mode; ino_t cgroup_ino",
        '"bdi %s: ino=%lu sync_mode=%d cgroup_ino=%lu", REC->name, (unsigned long)REC->ino, REC->sync_mode, '
        "(unsigned long)REC->cgroup_ino",
    ),
    Event(
        "writeback",
        "writeback_write_inode_start",
        307,
        "char name[32]; ino_t ino; int sync_mode; ino_t cgroup_ino",
        '"bdi %s: ino=%lu sync_mode=%d cgroup_ino=%lu", REC->name, (unsigned long)REC->ino, REC->sync_mode, '
        "(unsigned long)REC->cgroup_ino",
    ),
    Event(
        "writeback",
        "writeback_dirty_inode",
        308,
        "char name[32]; ino_t ino; unsigned long state; unsigned long flags",
        '"bdi %s: ino=%lu state=%s flags=%s", REC->name, (unsigned long)REC->ino, __print_flags(REC->state, "|", '
        '$INODE_STATES ), __print_flags(REC->flags, "|", $INODE_STATES )',
    ),
    Event(
        "writeback",
        "writeback_dirty_inode_start",
        309,
        "char name[32]; ino_t ino; unsigned long state; unsigned long flags",
        '"bdi %s: ino=%lu state=%s flags=%s", REC->name, (unsigned long)REC->ino, __print_flags(REC->state, "|", '
        '$INODE_STATES ), __print_flags(REC->flags, "|", $INODE_STATES )',
    ),
    Event(
        "writeback",
        "writeback_mark_inode_dirty",
        310,
        "char name[32]; ino_t ino; unsigned long state; unsigned long flags",
        '"bdi %s: ino=%lu state=%s flags=%s", REC->name, (unsigned long)REC->ino, __print_flags(REC->state, "|", '
        '$INODE_STATES ), __print_flags(REC->flags, "|", $INODE_STATES )',
    ),
    Event(
        "writeback",
        "folio_wait_writeback",
        311,
        "char name[32]; ino_t ino; unsigned long index",
        '"bdi %s: ino=%lu index=%lu", REC->name, (unsigned long)REC->ino, REC->index',
    ),
    Event(
        "writeback",
        "writeback_dirty_folio",
        312,
        "char name[32]; ino_t ino; unsigned long index",
        '"bdi %s: ino=%lu index=%lu", REC->name, (unsigned long)REC->ino, REC->index',
    ),
)
