"""Who runs on which processor."""

from roost.node.cores import Cores


def test_a_share_has_as_many_processors_as_it_needs_whole_and_those_that_are_asked_for_least() -> None:
    cores = Cores(range(4))
    assert [cores.take(vcpus).on for vcpus in (0.1, 1.5, 1, 1)] == [(0,), (1, 2), (3,), (0,)]
    assert cores.take(2).on == (1, 2)


def test_what_ends_or_stands_still_leaves_its_processors_to_others() -> None:
    cores = Cores(range(2))
    first, second = cores.take(1), cores.take(1)
    assert (first.on, second.on) == ((0,), (1,))
    cores.give(second)
    assert cores.take(1).on == (1,)
    cores.count(second)
    assert cores.take(0.5).on == (0,)


def test_who_may_have_all_is_bound_to_none() -> None:
    cores = Cores(range(2))
    assert [(share.on, share.cpus) for share in map(cores.take, (2, 1.1))] == [((), 2), ((), 2)]


def test_what_an_earlier_node_chose_counts() -> None:
    cores = Cores(range(4))
    assert cores.known({0, 1, 2, 3}).on == ()
    assert cores.known({0}).on == (0,)
    assert cores.take(1).on == (1,)
