-- A step may have a config of its own, in place of its definition's. A null takes no room in a row.

set local search_path = stepwell;

alter table step add column config text;   -- a JSON object; null: as the definition says

-- An earlier release goes on with these in their new form, but hands on the definition's config.
drop function if exists claim, settle;
-- No release has called it in this form.
drop function if exists update_step;

set local search_path to default;
