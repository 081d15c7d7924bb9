-- Locks the tasks of these steps, in the order of their ids: the first statement of every verb that
-- moves steps. In plpgsql, which keeps its plan: a function in sql is planned at every call.
create or replace function stepwell.lock_tasks(p_key bigint[])
  returns void language plpgsql volatile set search_path = stepwell as $$
begin
  perform 1 from task where id = any(array(select distinct k >> 14 from unnest(p_key) k))
    order by id for no key update;
end $$;

create or replace function stepwell.new_token() returns bigint language sql volatile as $$
  select (random() * 9e15)::bigint
$$;
