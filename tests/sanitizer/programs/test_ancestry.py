"""What descends from the images, against a walk over all of a node's sources."""

import random

from torch import fx

from worker.sanitizer.programs.ancestry import Ancestry


def walked(node, root):
    return node is root or any(walked(source, root) for source in node.all_input_nodes)


def test_it_answers_as_a_walk_does_while_the_graph_grows():
    draw, graph = random.Random(0), fx.Graph()
    images = graph.placeholder("images")
    nodes, of_images = [images, *(graph.get_attr(f"w{index}") for index in range(4))], Ancestry(images)
    answers = set()
    for _ in range(60):
        nodes.append(graph.call_function(max, tuple(draw.sample(nodes[-12:], 2))))
        asked = draw.choice(nodes)
        answers.add(asked in of_images)
        assert (asked in of_images) == walked(asked, images)
    assert answers == {True, False}


def test_a_long_chain_is_no_deep_recursion():
    graph = fx.Graph()
    images, node = graph.placeholder("images"), graph.get_attr("w")
    for _ in range(5000):
        node = graph.call_function(abs, (node,))
    of_images = Ancestry(images)
    assert node not in of_images
    assert graph.call_function(max, (node, images)) in of_images
