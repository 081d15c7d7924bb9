//! The shape of a definition: a graph of steps must have no cycle. Pure, on numbers.

use std::collections::VecDeque;

/// A shortest cycle through some step, in the order parent → child, its first step not repeated at
/// the end. None: there is no cycle. `parents` has for each node the nodes it depends on.
pub fn cycle(parents: &[Vec<usize>]) -> Option<Vec<usize>> {
    let children = reversed(parents);
    let left = unordered(parents, &children);
    // Every node that is left has a parent that is left, so walking up must come round.
    let mut seen = vec![false; parents.len()];
    let mut node = left.iter().position(|left| *left)?;
    while !seen[node] {
        seen[node] = true;
        node = parents[node].iter().copied().find(|parent| left[*parent])?;
    }
    shortest(&children, node)
}

fn reversed(parents: &[Vec<usize>]) -> Vec<Vec<usize>> {
    let mut children = vec![Vec::new(); parents.len()];
    for (child, parents) in parents.iter().enumerate() {
        parents.iter().for_each(|parent| children[*parent].push(child));
    }
    children
}

/// The nodes that no order of execution reaches: those on cycles, and all behind them.
fn unordered(parents: &[Vec<usize>], children: &[Vec<usize>]) -> Vec<bool> {
    let mut waiting_on: Vec<usize> = parents.iter().map(Vec::len).collect();
    let mut ready: Vec<usize> = (0..parents.len()).filter(|n| waiting_on[*n] == 0).collect();
    let mut left = vec![true; parents.len()];
    while let Some(node) = ready.pop() {
        left[node] = false;
        for child in &children[node] {
            waiting_on[*child] -= 1;
            if waiting_on[*child] == 0 {
                ready.push(*child);
            }
        }
    }
    left
}

/// A shortest way from the node back to itself.
fn shortest(children: &[Vec<usize>], start: usize) -> Option<Vec<usize>> {
    let mut from: Vec<Option<usize>> = vec![None; children.len()];
    let mut queue = VecDeque::from([start]);
    while let Some(node) = queue.pop_front() {
        for child in &children[node] {
            if *child == start {
                let mut path = vec![node];
                while let Some(before) = from[path[path.len() - 1]] {
                    path.push(before);
                }
                path.reverse();
                return Some(path);
            }
            if from[*child].is_none() {
                from[*child] = Some(node);
                queue.push_back(*child);
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn is_cycle(parents: &[Vec<usize>], path: &[usize]) -> bool {
        let next = |i: usize| path[(i + 1) % path.len()];
        let mut unique = path.to_vec();
        unique.sort_unstable();
        unique.dedup();
        unique.len() == path.len() && (0..path.len()).all(|i| parents[next(i)].contains(&path[i]))
    }

    fn graph() -> impl Strategy<Value = Vec<Vec<usize>>> {
        (1usize..12).prop_flat_map(|n| {
            let parents = prop::collection::btree_set(0..n, 0..3);
            prop::collection::vec(parents.prop_map(|set| set.into_iter().collect()), n)
        })
    }

    proptest! {
        #[test]
        fn a_graph_whose_edges_go_one_way_has_no_cycle(
            graph in graph(), order in Just((0..12usize).collect::<Vec<_>>()).prop_shuffle(),
        ) {
            let kept = |child: usize, parents: &[usize]| -> Vec<usize> {
                parents.iter().copied().filter(|p| order[*p] < order[child]).collect()
            };
            let graph: Vec<Vec<usize>> =
                graph.iter().enumerate().map(|(child, parents)| kept(child, parents)).collect();
            prop_assert_eq!(cycle(&graph), None);
        }

        #[test]
        fn the_cycle_named_is_one_and_only_graphs_with_a_cycle_have_one(graph in graph()) {
            match cycle(&graph) {
                Some(path) => prop_assert!(is_cycle(&graph, &path), "{path:?}"),
                // By brute force: no node reaches itself.
                None => for start in 0..graph.len() {
                    let mut reached = graph[start].clone();
                    for i in 0.. {
                        let Some(node) = reached.get(i).copied() else { break };
                        prop_assert_ne!(node, start);
                        let new: Vec<_> =
                            graph[node].iter().copied().filter(|n| !reached.contains(n)).collect();
                        reached.extend(new);
                    }
                },
            }
        }
    }

    #[test]
    fn a_long_way_round_is_found() {
        let n = 10_000;
        let ring: Vec<Vec<usize>> = (0..n).map(|i| vec![(i + n - 1) % n]).collect();
        assert_eq!(cycle(&ring).map(|path| path.len()), Some(n));
        let chain: Vec<Vec<usize>> =
            (0..n).map(|i| if i == 0 { vec![] } else { vec![i - 1] }).collect();
        assert_eq!(cycle(&chain), None);
    }
}
