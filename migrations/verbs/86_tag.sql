-- Writes the rows in `task_tag` that the next tasks lack which a verb of an earlier release made or changed, by key, highest
-- first; p_chunk tasks are looked at. Only once nobody is left who runs such a verb, and by one process at a time: see
-- services/store/src/migrate.rs.
--
-- Locks   tasks (by id).
-- Answers whether there may be more.
create or replace function stepwell.fill_tags(p_chunk int) returns bool
  language plpgsql volatile set search_path = stepwell as $$
declare
  v_seen   bigint[];
  v_tagged bigint[];
begin
  select array_agg(task order by task desc), array_agg(task) filter (where tags <> '{}')
    from (select task, tags from task_detail where task < (select place from task_untagged) order by task desc limit p_chunk) d
    into v_seen, v_tagged;
  if v_seen is null then
    delete from task_untagged;
    return false;
  end if;
  -- Whoever changes a task's tags meanwhile has them written, or sees what is written here.
  perform 1 from task where id = any(v_tagged) order by id for no key update;
  insert into task_tag
  select distinct unnest(tags), task from task_detail where task = any(v_tagged)
  on conflict do nothing;
  update task_untagged set place = v_seen[cardinality(v_seen)];
  return true;
end $$;
