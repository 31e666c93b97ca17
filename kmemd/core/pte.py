"""Page-table entries: the bits of x86 and what Linux keeps in entries that are not present.

The format is the hardware's (arch/x86/include/asm/pgtable_types.h, pgtable_64.h), on i386 too, whose entries are
32 bits wide in reality and lack NX. A present entry holds a PFN in bits 12 and up; an entry of a higher level with
``PSE`` maps a huge page. A non-present entry that is not 0 is ``PROT_NONE`` (NUMA hints are the same), or a swap entry:
type in bits 59 to 63, the complement of the offset in bits 9 to 58.
"""

PRESENT, RW, USER = 1 << 0, 1 << 1, 1 << 2
ACCESSED, DIRTY, PSE, GLOBAL = 1 << 5, 1 << 6, 1 << 7, 1 << 8
PROTNONE = GLOBAL  # in an entry that is not present
SPECIAL, UFFD_WP, SOFT_DIRTY = 1 << 9, 1 << 10, 1 << 11
NX = 1 << 63
PFN_SHIFT = 12
PFN_MASK = ((1 << 40) - 1) << PFN_SHIFT
FLAGS_MASK = ~PFN_MASK & ((1 << 64) - 1)
TABLE = PRESENT | RW | USER | ACCESSED | DIRTY  # _PAGE_TABLE, an entry that leads to a table

# a swap entry's low bits (arch/x86/include/asm/pgtable_64.h)
SWP_SOFT_DIRTY, SWP_UFFD_WP, SWP_EXCLUSIVE = 1 << 1, 1 << 2, 1 << 3
SWP_TYPE_SHIFT, SWP_OFFSET_BITS, SWP_OFFSET_SHIFT = 59, 50, 9
MAX_SWAPFILES = 23
SWP_MIGRATION_READ, SWP_MIGRATION_READ_EXCLUSIVE, SWP_MIGRATION_WRITE = 28, 29, 30
SWP_SWAPIN_ERROR = 31

_OFFSET_MASK = (1 << SWP_OFFSET_BITS) - 1


def swap_entry(kind: int, offset: int) -> int:
    """The entry for slot ``offset`` of swap area ``kind``, or for a page under migration (offset: its PFN)."""
    return kind << SWP_TYPE_SHIFT | (~offset & _OFFSET_MASK) << SWP_OFFSET_SHIFT


def swap_type(entry: int) -> int:
    """The swap area or kind of migration."""
    return entry >> SWP_TYPE_SHIFT


def swap_offset(entry: int) -> int:
    """The slot, or the PFN under migration."""
    return ~(entry >> SWP_OFFSET_SHIFT) & _OFFSET_MASK
