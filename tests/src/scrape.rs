//! What a service has measured, as its `/metrics` tells it, in the text format of Prometheus.

use std::{collections::BTreeMap, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::Instant,
};

use crate::SOON;

/// One reading of `/metrics`.
#[derive(Clone, Debug, Default)]
pub struct Scrape {
    /// By name: the type and the text.
    pub families: BTreeMap<String, (String, String)>,
    /// The lines with values.
    pub samples: Vec<Sample>,
}

/// One line.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Its name; histograms have `_bucket`, `_sum` and `_count` behind theirs.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its value.
    pub value: f64,
}

impl Scrape {
    /// Reads what the service at this address (`http://host:port`) has measured.
    pub async fn of(address: &str) -> Self {
        let host = address.strip_prefix("http://").unwrap();
        let mut stream = TcpStream::connect(host).await.unwrap();
        let request = format!("GET /metrics HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let head = head.to_lowercase();
        assert!(head.starts_with("http/1.1 200"), "{head}");
        assert!(head.contains("content-type: text/plain; version=0.0.4"), "{head}");
        // Whole, not in chunks, or the sizes of these would stand between the lines.
        assert!(head.contains("content-length"), "{head}");
        Self::parse(body)
    }

    /// Reads again until it is as it should be.
    pub async fn until(address: &str, is_so: impl Fn(&Self) -> bool) -> Self {
        let deadline = Instant::now() + SOON;
        loop {
            let scrape = Self::of(address).await;
            if is_so(&scrape) {
                return scrape;
            }
            assert!(Instant::now() < deadline, "{:#?}", scrape.samples);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// With what another reading has.
    pub fn and(mut self, other: &Self) -> Self {
        self.families.extend(other.families.clone());
        self.samples.extend(other.samples.clone());
        self
    }

    fn parse(text: &str) -> Self {
        let mut scrape = Self::default();
        for line in text.lines() {
            if let Some(help) = line.strip_prefix("# HELP ") {
                let (name, help) = help.split_once(' ').unwrap();
                scrape.families.entry(name.to_owned()).or_default().1 = help.to_owned();
            } else if let Some(kind) = line.strip_prefix("# TYPE ") {
                let (name, kind) = kind.split_once(' ').unwrap();
                scrape.families.entry(name.to_owned()).or_default().0 = kind.to_owned();
            } else if !line.is_empty() {
                scrape.samples.push(Sample::parse(line));
            }
        }
        scrape
    }

    /// The sum over the samples of this name that have these labels.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.of_name(name, labels).map(|sample| sample.value).sum()
    }

    /// True when there is a sample of this name that has these labels.
    pub fn has(&self, name: &str, labels: &[(&str, &str)]) -> bool {
        self.of_name(name, labels).next().is_some()
    }

    /// The samples of this name that have these labels.
    pub fn of_name<'a>(
        &'a self,
        name: &'a str,
        labels: &'a [(&'a str, &'a str)],
    ) -> impl Iterator<Item = &'a Sample> {
        self.samples.iter().filter(move |sample| {
            sample.name == name
                && labels.iter().all(|(k, v)| sample.labels.get(*k).is_some_and(|have| have == v))
        })
    }

    /// The names of the labels of a metric, `le` of histograms left out.
    pub fn labels_of(&self, metric: &str) -> Vec<String> {
        let mut names: Vec<String> = self
            .samples
            .iter()
            .filter(|sample| {
                metric_of(&sample.name, |name| self.families.contains_key(name)) == metric
            })
            .flat_map(|sample| sample.labels.keys().filter(|label| *label != "le").cloned())
            .collect();
        names.sort_unstable();
        names.dedup();
        names
    }
}

/// The metric a sample is of.
pub fn metric_of(sample: &str, is_metric: impl Fn(&str) -> bool) -> &str {
    if is_metric(sample) {
        return sample;
    }
    ["_bucket", "_sum", "_count"].iter().find_map(|end| sample.strip_suffix(end)).unwrap_or(sample)
}

impl Sample {
    /// `name{label="value",…} value`; no value here has a comma or a quote in it.
    fn parse(line: &str) -> Self {
        let (sample, value) = line.rsplit_once(' ').unwrap();
        let (name, labels) = sample.split_once('{').unwrap_or((sample, "}"));
        let labels = labels.strip_suffix('}').unwrap();
        let label = |label: &str| {
            let (name, value) = label.split_once('=').unwrap();
            (name.to_owned(), value.trim_matches('"').to_owned())
        };
        Self {
            name: name.to_owned(),
            labels: labels.split(',').filter(|l| !l.is_empty()).map(label).collect(),
            value: value.parse().unwrap(),
        }
    }
}
