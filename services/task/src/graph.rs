//! The shape of a definition: a graph of steps, which must have no cycle; how deep each step lies in it. Pure, on
//! numbers. `parents` has for each node the nodes it depends on.

use std::collections::VecDeque;

use stepwell_proto::v1::{GraphEdge, GraphLevel};
use stepwell_store::StoredDefinition;

/// How deep the nodes of a graph without cycles lie.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Depths {
    /// Of each node, the edges on the longest way to it from a root.
    pub(crate) levels: Vec<usize>,
    /// Of each node, the edges on the shortest one.
    pub(crate) distances: Vec<usize>,
}

impl Depths {
    /// Of each node; nodes on cycles have none, and count as roots.
    pub(crate) fn of(parents: &[Vec<usize>]) -> Self {
        let (mut levels, mut distances) = (vec![0; parents.len()], vec![0; parents.len()]);
        for node in order(parents, &reversed(parents)) {
            let of = |depths: &[usize], parent: &usize| depths[*parent] + 1;
            levels[node] = parents[node].iter().map(|p| of(&levels, p)).max().unwrap_or(0);
            distances[node] = parents[node].iter().map(|p| of(&distances, p)).min().unwrap_or(0);
        }
        Self { levels, distances }
    }

    /// A longest path, root first; of several the one through the lowest numbers, seen from its end.
    pub(crate) fn longest_path(&self, parents: &[Vec<usize>]) -> Vec<usize> {
        let deepest = (0..parents.len()).rev().max_by_key(|node| self.levels[*node]);
        let mut path: Vec<usize> = deepest.into_iter().collect();
        while let Some(node) = path.last()
            && let Some(above) = self.levels[*node].checked_sub(1)
        {
            let step = parents[*node].iter().copied().filter(|p| self.levels[*p] == above).min();
            path.extend(step);
        }
        path.reverse();
        path
    }
}

/// The graph of a definition as people are shown it.
pub(crate) struct Drawing {
    /// Of each step, the steps it depends on, ascending.
    pub(crate) parents: Vec<Vec<i32>>,
    /// By child and then by parent.
    pub(crate) edges: Vec<GraphEdge>,
    /// The steps by level.
    pub(crate) levels: Vec<GraphLevel>,
    /// A longest path.
    pub(crate) longest_path: Vec<i32>,
}

/// Draws the graph of a definition.
pub(crate) fn drawn(stored: &StoredDefinition) -> (Depths, Drawing) {
    let place = |number: &i32| usize::try_from(*number).expect("a place in the list");
    let parents: Vec<Vec<usize>> =
        stored.parents.iter().map(|of| of.iter().map(place).collect()).collect();
    let depths = Depths::of(&parents);
    let mut drawing = Drawing {
        parents: stored.parents.clone(),
        edges: Vec::new(),
        levels: Vec::new(),
        longest_path: depths.longest_path(&parents).into_iter().map(number).collect(),
    };
    for (i, parents) in drawing.parents.iter_mut().enumerate() {
        parents.sort_unstable();
        let edge = |&parent: &i32| GraphEdge { parent, child: number(i) };
        drawing.edges.extend(parents.iter().map(edge));
        let level = depths.levels[i];
        if drawing.levels.len() <= level {
            drawing.levels.resize_with(level + 1, GraphLevel::default);
        }
        drawing.levels[level].steps.push(number(i));
    }
    (depths, drawing)
}

/// A place or a count of steps as the contract has it.
pub(crate) fn number(of: usize) -> i32 {
    i32::try_from(of).expect("a definition's steps and edges are bounded")
}

/// A shortest cycle through some step, in the order parent → child, its first step not repeated at
/// the end. None: there is no cycle.
pub(crate) fn cycle(parents: &[Vec<usize>]) -> Option<Vec<usize>> {
    let children = reversed(parents);
    let mut left = vec![true; parents.len()];
    order(parents, &children).into_iter().for_each(|node| left[node] = false);
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

/// The nodes, parents first. Those on cycles, and all behind them, are left out.
fn order(parents: &[Vec<usize>], children: &[Vec<usize>]) -> Vec<usize> {
    let mut waiting_on: Vec<usize> = parents.iter().map(Vec::len).collect();
    let mut order: Vec<usize> = (0..parents.len()).filter(|n| waiting_on[*n] == 0).collect();
    for next in 0.. {
        let Some(node) = order.get(next) else { break };
        for child in &children[*node] {
            waiting_on[*child] -= 1;
        }
        let freed = children[*node].iter().copied().filter(|child| waiting_on[*child] == 0);
        order.extend(freed.collect::<Vec<_>>());
    }
    order
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

    /// The lengths of all ways to a node from roots.
    fn ways(parents: &[Vec<usize>], node: usize) -> Vec<usize> {
        if parents[node].is_empty() {
            return vec![0];
        }
        let above = parents[node].iter().flat_map(|parent| ways(parents, *parent));
        above.map(|length| length + 1).collect()
    }

    fn is_path(parents: &[Vec<usize>], path: &[usize]) -> bool {
        path.windows(2).all(|pair| parents[pair[1]].contains(&pair[0]))
    }

    proptest! {
        #[test]
        fn a_level_is_the_longest_way_from_a_root_and_a_distance_the_shortest(graph in graph()) {
            // Edges from lower to higher numbers only.
            let parents: Vec<Vec<usize>> = graph.iter().enumerate()
                .map(|(child, parents)| parents.iter().copied().filter(|p| *p < child).collect())
                .collect();
            let depths = Depths::of(&parents);
            for node in 0..parents.len() {
                let ways = ways(&parents, node);
                prop_assert_eq!(Some(&depths.levels[node]), ways.iter().max());
                prop_assert_eq!(Some(&depths.distances[node]), ways.iter().min());
            }
            let path = depths.longest_path(&parents);
            prop_assert_eq!(Some(path.len() - 1), depths.levels.iter().copied().max());
            prop_assert!(is_path(&parents, &path), "{:?}", path);
        }

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
        assert_eq!(Depths::of(&chain).longest_path(&chain), (0..n).collect::<Vec<_>>());
    }
}
