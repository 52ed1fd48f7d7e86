"""Self-checks answer every attempt with one line, and never stop the notebook."""

import pytest

from kdlib.course.exercises import self_check


def test_a_right_answer_is_correct(capsys):
    with self_check("Exercise 1"):
        assert 1 + 1 == 2, "count again"
    assert capsys.readouterr().out == "Exercise 1: correct.\n"


def test_a_failed_assert_is_not_yet_and_says_why(capsys):
    with self_check("Exercise 2"):
        raise AssertionError("at T = 1 nothing should change")
    assert capsys.readouterr().out == "Exercise 2: not yet. at T = 1 nothing should change\n"


def test_an_assert_without_a_message_is_not_yet_and_nothing_else(capsys):
    with self_check("Exercise 3"):
        raise AssertionError
    assert capsys.readouterr().out == "Exercise 3: not yet.\n"


class Odd(Exception):
    pass


@pytest.mark.parametrize("error", [NameError("no name 'q'"), Odd("so"), ZeroDivisionError("by 0")])
def test_any_other_error_is_not_yet_and_is_named(capsys, error):
    with self_check("Exercise 4"):
        raise error
    said = f"Exercise 4: not yet. Your code stopped with {type(error).__name__}: {error}\n"
    assert capsys.readouterr().out == said


def test_an_unfinished_answer_is_not_yet(capsys):
    def answer(x):
        return ...

    with self_check("Exercise 5"):
        assert answer(2) + 1 == 5
    assert capsys.readouterr().out.startswith("Exercise 5: not yet. Your code stopped with TypeError: ")


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_the_stop_button_stops(capsys, stop):
    with pytest.raises(stop), self_check("Exercise 6"):
        raise stop
    assert capsys.readouterr().out == ""


def test_lines_after_the_first_failure_do_not_run(capsys):
    reached = []
    with self_check("Exercise 7"):
        reached.append("first")
        if len(reached) < 2:
            raise AssertionError("one thing is missing")
        reached.append("second")
    reached.append("after")
    assert reached == ["first", "after"]
    assert capsys.readouterr().out == "Exercise 7: not yet. one thing is missing\n"


def test_a_check_inside_a_check_answers_for_itself(capsys):
    with self_check("whole"):
        with self_check("part"):
            raise AssertionError("half done")
        assert True
    assert capsys.readouterr().out == "part: not yet. half done\nwhole: correct.\n"


def test_a_message_is_printed_as_the_author_wrote_it(capsys):
    with self_check("Exercise 8"):
        raise AssertionError("p sums to 0.9, not 1 (100 %)")
    out, err = capsys.readouterr()
    assert out == "Exercise 8: not yet. p sums to 0.9, not 1 (100 %)\n"
    assert err == ""


def test_a_bare_assert_as_a_notebook_runs_it_gets_no_invented_message(capsys):
    source = "with self_check('Exercise 9'):\n    assert [1, 2] == [1, 3]\n"
    exec(source, {"self_check": self_check})  # pytest does not rewrite this assert
    assert capsys.readouterr().out == "Exercise 9: not yet.\n"


def test_each_use_answers_anew(capsys):
    for guess in (3, 4):
        with self_check("Exercise 10"):
            if guess != 4:
                raise AssertionError("more")
    assert capsys.readouterr().out == "Exercise 10: not yet. more\nExercise 10: correct.\n"
