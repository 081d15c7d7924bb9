//! Which definitions there are.

use stepwell_proto::v1::{DefinitionSummary, NamespaceSummary};

use crate::{
    Error, Store,
    definition::{array_text, hex, timestamp},
};

/// A place in the list of definitions: all before it are left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DefinitionPlace {
    /// A namespace.
    pub namespace: String,
    /// A name in it.
    pub name: String,
    /// A version of that name.
    pub version: [i32; 3],
}

impl Store {
    /// Definitions after a place, at most so many, by namespace, name and version, and whether there are more; of
    /// one namespace or one name, or of all if these are empty; only the latest versions, or all.
    pub async fn list_definitions(
        &self,
        namespace: &str,
        name: &str,
        all_versions: bool,
        after: &DefinitionPlace,
        most: i32,
    ) -> Result<(Vec<DefinitionSummary>, bool), Error> {
        let rows = sqlx::query!(
            r#"select namespace, name, version, hash, created_at, paused,
                      (select no + 1 from stepwell.step_template where definition = d.id
                        order by no desc limit 1) as "steps!",
                      not exists (select from stepwell.definition
                                   where namespace = d.namespace and name = d.name
                                     and version > d.version) as "latest!"
                 from stepwell.definition d
                where (namespace, name, version) > ($1, $2, $3::text::int[])
                  and $4 in ('', namespace) and $5 in ('', name)
                  and ($6 or not exists (select from stepwell.definition
                                          where namespace = d.namespace and name = d.name
                                            and version > d.version))
                order by namespace, name, version limit $7"#,
            after.namespace,
            after.name,
            array_text(after.version),
            namespace,
            name,
            all_versions,
            i64::from(most) + 1,
        )
        .fetch_all(self.reads())
        .await?;
        let mut definitions: Vec<DefinitionSummary> = Vec::with_capacity(rows.len());
        for row in rows {
            let numbers: Vec<String> = row.version.iter().map(i32::to_string).collect();
            definitions.push(DefinitionSummary {
                namespace: row.namespace,
                name: row.name,
                version: numbers.join("."),
                latest: row.latest,
                total_steps: row.steps,
                content_hash: hex(&row.hash),
                paused: row.paused,
                create_time: Some(timestamp(row.created_at)),
            });
        }
        Ok(cut(definitions, most))
    }

    /// Namespaces with definitions after one, at most so many, by name, and whether there are more.
    pub async fn list_namespaces(
        &self,
        after: &str,
        most: i32,
    ) -> Result<(Vec<NamespaceSummary>, bool), Error> {
        let namespaces = sqlx::query_as!(
            NamespaceRow,
            r#"select namespace, count(distinct name)::int as "definitions!", count(*)::int as "versions!"
                 from stepwell.definition where namespace > $1
                group by namespace order by namespace limit $2"#,
            after,
            i64::from(most) + 1,
        )
        .fetch_all(self.reads())
        .await?;
        let summary = |NamespaceRow { namespace, definitions, versions }| NamespaceSummary {
            namespace,
            definitions,
            versions,
        };
        Ok(cut(namespaces.into_iter().map(summary).collect(), most))
    }
}

struct NamespaceRow {
    namespace: String,
    definitions: i32,
    versions: i32,
}

/// So many of them, and whether there were more.
fn cut<T>(mut items: Vec<T>, most: i32) -> (Vec<T>, bool) {
    let most = usize::try_from(most).unwrap_or_default();
    let more = items.len() > most;
    items.truncate(most);
    (items, more)
}
