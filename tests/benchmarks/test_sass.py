"""Machine code as nvdisasm writes it, made up: loops, turns, what is counted, and each fault seen."""

import networkx
import pytest

from benchmarks.sass import Instruction, Kernel, named, parse

# A pass that sums, a join of its lanes, a pass that writes; and the loop for a row that does not count.
ROW = """\
        .section        .text.row,"ax",@progbits
.text.row:
        /*0000*/                   LDG.E.64 R2, desc[UR16][R2.64] ;
        /*0010*/               @P0 BRA `(.L_x_0) ;
.L_x_5:
        /*0020*/              @!P1 STG.E.128 desc[UR16][R2.64], RZ ;
        /*0030*/               @P0 BRA `(.L_x_5) ;
        /*0040*/                   EXIT ;
.L_x_0:
        /*0050*/                   LDG.E.U16 R9, desc[UR16][R6.64] ;
.L_x_1:
        /*0060*/              @!P0 LDG.E.128 R4, desc[UR16][R2.64] ;
        /*0070*/              @!P1 LDG.E.128.CONSTANT R8, desc[UR16][R2.64+0x1000] ;
        /*0080*/                   FMNMX R29, R24, R31, PT ;
        /*0090*/                   MUFU.EX2 R33, R33 ;
        /*00a0*/                   FADD R29, R33, R34 ;
        /*00b0*/                   IADD3.X R23, RZ, R23, RZ, P3, !PT ;
        /*00c0*/                   BRA.U UP0, `(.L_x_1) ;
        /*00d0*/                   SHFL.BFLY PT, R3, R18, 0x10, 0x1f ;
        /*00e0*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;
        /*00f0*/               @P3 BRA `(.L_x_2) ;
.L_x_3:
        /*0100*/                   LDG.E.128 R4, [R2.64] ;
        /*0110*/                   LDG.E.128 R8, [R2.64] ;
        /*0120*/                   FFMA R2, R2, R3, R4 ;
        /*0130*/               @P0 STG.E.128 [R12.64], R8 ;
        /*0140*/              @!P0 BRA `(.L_x_3) ;
.L_x_2:
        /*0150*/                   STG.E [R2.64], R7 ;
        /*0160*/                   EXIT ;
.L_x_4:
        /*0170*/                   BRA `(.L_x_4);
"""


def test_lines_are_read():
    assert parse("        /*0670*/              @!UP1 BRA.U UP2, `(.L_x_3) ;  /* 0x0 */") == [
        Instruction("BRA.U", "UP2, `(.L_x_3)", True, ".L_x_3")
    ]
    assert parse(".L_x_3:\n  /*01a0*/  EXIT ;") == [".L_x_3", Instruction("EXIT")]
    assert parse("\t.section\t.text\n        /*0c*/ \t.byte\t0x04, 0x2f\n") == []


@pytest.mark.parametrize(
    ("name", "size"),
    [("LDG.E.128", 16), ("LDG.E.64.CONSTANT", 8), ("LDG.E", 4), ("LDG.E.U16", 2), ("STG.E.U8", 1),
     ("LDG.E.ENL2.256", 32), ("STS.128", 16), ("FADD", 0), ("IMAD.U32", 0)],
)  # fmt: skip
def test_bytes_of_an_access(name, size):
    assert Instruction(name).bytes == size


def test_kinds():
    names = {"MUFU.LG2": "special", "FFMA.FTZ": "full_rate", "PRMT": "half_rate", "STL": "memory",
             "IMAD.MOV.U32": "other", "BRA": "other"}  # fmt: skip
    assert {name: Instruction(name).kind for name in names} == names


def test_passes_are_the_loops_that_read():
    first, second = Kernel(ROW, 16).passes
    # 32 bytes of a lane's turn: 8 classes of a pair of bfloat16 numbers, or 4 of float32.
    assert (first.classes(4), first.classes(8), second.classes(4)) == (8, 4, 8)
    assert first.per_class(4) == {
        "memory": 2 / 8, "special": 1 / 8, "half_rate": 2 / 8, "full_rate": 1 / 8, "other": 1 / 8
    }
    assert sum(second.per_class(4).values()) == 5 / 8
    assert len(named(Kernel(ROW, 16).instructions, "SHFL")) == 1
    assert not named(first.body, "SHFL")


def test_what_is_no_whole_class_is_noticed():
    one_more = ROW.replace("MUFU.EX2 R33, R33", "LDG.E.U16 R33, [R2.64]")
    with pytest.raises(ValueError, match="34 bytes, expected whole classes of 4 bytes"):
        Kernel(one_more, 16).passes[0].classes(4)
    assert Kernel(one_more, 16).passes[0].classes(2) == 17


def test_a_shuffle_in_a_loop_is_seen():
    shuffled = ROW.replace("MUFU.EX2 R33, R33", "SHFL.IDX PT, R3, R18, R4, 0x1f")
    assert len(named(Kernel(shuffled, 16).loops[0].body, "SHFL")) == 1


def test_a_read_behind_the_barrier_is_seen():
    assert not Kernel(ROW, 16).reads_before_stores()
    after = ROW.replace("               @P3 BRA", " LDG.E.U16 R9, [R6.64] ;\n /*00f4*/ @P3 BRA")
    assert [each.name for each in Kernel(after, 16).reads_before_stores()] == ["LDG.E.U16"]
    # Without the barrier all reads of the first pass are such.
    unparted = ROW.replace("BAR.SYNC.DEFER_BLOCKING 0x0", "NOP")
    assert len(Kernel(unparted, 16).reads_before_stores()) == 4


def test_the_usual_turn_is_the_shortest_that_reads_a_block():
    """A body that branches: a block within the row, or one at its end. That none is read cannot be."""
    branching = ROW.replace("""\
        /*0100*/                   LDG.E.128 R4, [R2.64] ;
        /*0110*/                   LDG.E.128 R8, [R2.64] ;
""", """\
        /*0100*/               @P4 BRA `(.L_x_7) ;
        /*0104*/                   LDG.E.128 R4, [R2.64] ;
        /*0108*/                   LDG.E.128 R8, [R2.64] ;
        /*010c*/                   BRA `(.L_x_8) ;
.L_x_7:
        /*0110*/              @!P5 LDG.E.128 R4, [R2.64] ;
        /*0111*/              @!P6 LDG.E.128 R8, [R2.64] ;
        /*0112*/                   ISETP.GE.AND P1, PT, R2, R3, PT ;
        /*0113*/                   FSEL R2, R2, R3, P1 ;
        /*0114*/               @P5 BRA `(.L_x_8) ;
        /*0115*/                   LDG.E.128 R8, [R2.64] ;
        /*0116*/                   SHFL.BFLY PT, R3, R18, 0x10, 0x1f ;
.L_x_8:
""")  # fmt: skip
    assert branching != ROW
    second = Kernel(branching, 32).passes[1]
    assert [each.name for each in second.turn] == [
        "BRA", "LDG.E.128", "LDG.E.128", "BRA", "FFMA", "STG.E.128", "BRA"
    ]  # fmt: skip
    assert second.classes(4) == 8
    assert len(named(second.body, "SHFL")) == 1  # also where it is not usual


def test_a_way_that_reads_both_alternatives_or_none_is_not_usual():
    """Two branches by one predicate look like four ways."""
    branching = ROW.replace("""\
        /*0100*/                   LDG.E.128 R4, [R2.64] ;
        /*0110*/                   LDG.E.128 R8, [R2.64] ;
""", """\
        /*0100*/               @P4 BRA `(.L_x_7) ;
        /*0104*/                   LDG.E.128 R4, [R2.64] ;
        /*0108*/                   LDG.E.128 R8, [R2.64] ;
.L_x_7:
        /*0110*/              @!P4 BRA `(.L_x_8) ;
        /*0111*/              @!P5 LDG.E.128 R4, [R2.64] ;
        /*0112*/              @!P6 LDG.E.128 R8, [R2.64] ;
        /*0113*/                   FSEL R2, R2, R3, P1 ;
.L_x_8:
""")  # fmt: skip
    turn = Kernel(branching, 32).passes[1].turn
    assert [each.predicated for each in named(turn, "LDG")] == [False, False]
    with pytest.raises(ValueError, match="no turn of a loop reads a block of 80 bytes"):
        _ = Kernel(branching, 80).passes


def test_of_an_unrolled_pass_the_turns_that_are_left_do_not_count():
    unrolled = ROW.replace("""\
        /*00d0*/                   SHFL""", """\
.L_x_9:
        /*00c4*/                   LDG.E.128 R8, [R2.64] ;
        /*00c8*/               @P0 BRA `(.L_x_9) ;
        /*00d0*/                   SHFL""")  # fmt: skip
    kernel = Kernel(unrolled, 16)
    assert [loop.read() for loop in kernel.loops] == [32, 16, 32]
    assert [loop.read() for loop in kernel.passes] == [32, 32]


def test_a_barrier_within_a_loop_parts_nothing():
    """As where a block is written in another order than it was read."""
    exchanged = ROW.replace("FFMA R2, R2, R3, R4", "BAR.SYNC.DEFER_BLOCKING 0x0")
    first, second = Kernel(exchanged, 16).passes
    assert [len(named(loop.body, "BAR")) for loop in (first, second)] == [0, 1]
    assert not Kernel(exchanged, 16).reads_before_stores()


def test_what_is_no_simple_loop_is_refused():
    within = ROW.replace("        /*0080*/", ".L_x_6:\n        /*0080*/")
    nested = within.replace("R33, R34 ;", "R33, R34 ;\n /*00a4*/ @P2 BRA `(.L_x_6) ;")
    with pytest.raises(networkx.NetworkXUnfeasible):
        _ = Kernel(nested, 16).passes
    twice = within.replace("@P0 BRA `(.L_x_0)", "@P0 BRA `(.L_x_6)")
    with pytest.raises(ValueError, match="entered at 2 places"):
        _ = Kernel(twice, 16).passes
    with pytest.raises(ValueError, match="no loop both reads and writes"):
        Kernel(ROW.replace("@P0 STG.E.128", "@P0 NOP"), 16).reads_before_stores()
