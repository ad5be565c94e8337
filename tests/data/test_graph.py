import torch

from recbole_dppmg.data.graph import Graph, knn_graph, user_item_graph


def dense(graph: Graph, size: int) -> torch.Tensor:
    return graph.propagate(torch.eye(size))


def test_propagation_is_the_symmetrically_normalised_adjacency():
    users, items = torch.tensor([0, 0, 1, 2, 2]), torch.tensor([0, 1, 1, 1, 1])  # one interaction twice
    adjacency = torch.zeros(5, 5)
    for user, item in zip(users, items, strict=True):
        adjacency[user, 3 + item] = adjacency[3 + item, user] = 1
    scale = adjacency.sum(1).rsqrt()
    expected = scale[:, None] * adjacency * scale
    torch.testing.assert_close(dense(user_item_graph(users, items, 3, 2), 5), expected)


def test_gradient_of_propagation_is_its_transpose():
    graph = user_item_graph(torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1]), 2, 2)
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    weight = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
    (graph.propagate(x) * weight).sum().backward()
    torch.testing.assert_close(x.grad, dense(graph, 4).T @ weight)


def test_knn_in_blocks_is_knn_at_once_and_skips_items_without_features():
    features = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    present = torch.ones(50, dtype=torch.bool)
    present[[0, 7]] = False
    whole = knn_graph(features, present, 3)
    blocks = knn_graph(features, present, 3, budget=4 * 48 * 5)  # five rows at a time
    assert torch.equal(whole.edges.as_tensor(), blocks.edges.as_tensor())
    assert whole.degree[[0, 7]].sum() == 0
    assert whole.degree[present].min() >= 3
    unit = torch.nn.functional.normalize(features, dim=1)
    cosine = (unit @ unit.T).fill_diagonal_(-2)
    cosine[:, ~present] = -2
    nearest = cosine[3].topk(3).indices
    rows, columns = whole.edges.as_tensor()
    assert set(nearest.tolist()) <= set(columns[rows == 3].tolist())


def test_items_without_any_features_have_an_empty_graph():
    graph = knn_graph(torch.zeros(4, 1), torch.zeros(4, dtype=torch.bool), 3)
    assert graph.propagate(torch.ones(4, 2)).abs().sum() == 0


def test_no_held_out_interaction_is_in_the_graph(trained):
    data, trainer = trained
    model = trainer.model
    rows, columns = model.graph.edges.as_tensor()
    edges = set(zip(rows.tolist(), (columns - model.n_users).tolist(), strict=True))
    for part, expected in ((data.train, True), (data.valid, False), (data.test, False)):
        frame = part._dataset.inter_feat
        for user, item in zip(frame["user_id"].tolist(), frame["item_id"].tolist(), strict=True):
            assert ((user, item) in edges) is expected
