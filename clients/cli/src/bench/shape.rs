//! What the tasks of a benchmark look like.

use std::{fmt, str::FromStr};

use rand::{RngExt, SeedableRng, rngs::SmallRng};

use super::NAMESPACE;

const CHAIN_MAX: u16 = 1000;
const RANDOM_DEFINITIONS: u64 = 10;
const RANDOM_STEPS: std::ops::RangeInclusive<usize> = 2..=20;
const RANDOM_PARENTS_MAX: usize = 3;

/// A family of tasks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// So many steps, one after another.
    Chain(u16),
    /// One step, so many at once after it, and one after all of these.
    Fan(u16),
    /// One step, two after it, and one after both.
    Diamond,
    /// Ten definitions of 2 to 20 steps, the same ones every time; each task is of one of them.
    Random,
}

/// One definition.
#[derive(Clone, Debug)]
pub(crate) struct Definition {
    pub(crate) name: String,
    pub(crate) yaml: String,
    pub(crate) steps: u64,
}

impl FromStr for Shape {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let counted = |n: &str| {
            let n = n.parse().ok().filter(|n| (1..=CHAIN_MAX).contains(n));
            n.ok_or_else(|| format!("a number of steps from 1 to {CHAIN_MAX} is wanted"))
        };
        match text.split_once(':') {
            Some(("chain", n)) => counted(n).map(Self::Chain),
            Some(("fan", n)) => counted(n).map(Self::Fan),
            _ => match text {
                "one" => Ok(Self::Chain(1)),
                "linear3" => Ok(Self::Chain(3)),
                "fan10" => Ok(Self::Fan(10)),
                "diamond" => Ok(Self::Diamond),
                "random" => Ok(Self::Random),
                _ => Err("one, linear3, fan10, diamond, random, chain:N or fan:N is wanted".into()),
            },
        }
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Chain(1) => f.write_str("one"),
            Self::Chain(3) => f.write_str("linear3"),
            Self::Chain(n) => write!(f, "chain:{n}"),
            Self::Fan(10) => f.write_str("fan10"),
            Self::Fan(n) => write!(f, "fan:{n}"),
            Self::Diamond => f.write_str("diamond"),
            Self::Random => f.write_str("random"),
        }
    }
}

impl Shape {
    /// Its definitions.
    pub(crate) fn definitions(self) -> Vec<Definition> {
        match self {
            Self::Chain(n) => {
                let parents = (0..usize::from(n)).map(|i| i.checked_sub(1).into_iter().collect());
                vec![definition(&format!("chain{n}"), parents.collect())]
            }
            Self::Fan(n) => {
                let n = usize::from(n);
                let mut parents = vec![Vec::new()];
                parents.extend((0..n).map(|_| vec![0]));
                parents.push((1..=n).collect());
                vec![definition(&format!("fan{n}"), parents)]
            }
            Self::Diamond => {
                vec![definition("diamond", vec![vec![], vec![0], vec![0], vec![1, 2]])]
            }
            Self::Random => (0..RANDOM_DEFINITIONS).map(random).collect(),
        }
    }
}

fn random(seed: u64) -> Definition {
    let mut random = SmallRng::seed_from_u64(seed);
    let steps = random.random_range(RANDOM_STEPS);
    let parents = (0..steps).map(|i| {
        let wanted = random.random_range(0..=RANDOM_PARENTS_MAX.min(i));
        let mut parents: Vec<usize> = (0..wanted).map(|_| random.random_range(0..i)).collect();
        parents.sort_unstable();
        parents.dedup();
        parents
    });
    definition(&format!("random{seed}"), parents.collect())
}

/// From each step's parents.
fn definition(name: &str, parents: Vec<Vec<usize>>) -> Definition {
    let mut yaml = format!(
        "namespace: {NAMESPACE}\nname: {name}\nversion: 1.0.0\n\
         defaults: {{retry: {{max_attempts: 20, initial_backoff: 10ms, multiplier: 1}}}}\nsteps:\n"
    );
    for (i, parents) in parents.iter().enumerate() {
        let parents: Vec<String> = parents.iter().map(|p| format!("s{p}")).collect();
        let parents = parents.join(", ");
        yaml += &format!("  - {{name: s{i}, handler: work, depends_on: [{parents}]}}\n");
    }
    Definition { name: name.to_owned(), yaml, steps: parents.len() as u64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shape_is_read_as_it_is_written() {
        for text in ["one", "linear3", "chain:7", "fan10", "fan:3", "diamond", "random"] {
            assert_eq!(text.parse::<Shape>().unwrap().to_string(), text);
        }
        assert_eq!("chain:3".parse(), Ok(Shape::Chain(3)));
        for text in ["", "two", "chain", "chain:0", "chain:1001", "fan:x"] {
            assert!(text.parse::<Shape>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_definition_has_the_steps_it_says() {
        for (shape, steps) in [(Shape::Chain(3), 3), (Shape::Fan(10), 12), (Shape::Diamond, 4)] {
            let [definition] = &shape.definitions()[..] else { panic!("{shape}") };
            assert_eq!(definition.steps, steps);
            assert_eq!(definition.yaml.matches("- {name").count() as u64, steps);
        }
        assert_eq!(Shape::Random.definitions().len(), 10);
    }
}
