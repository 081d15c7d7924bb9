-- Locks the tasks of these steps, in the order of their ids: the first statement of every verb that
-- moves steps.
create or replace function stepwell.lock_tasks(p_key bigint[])
  returns void language sql volatile set search_path = stepwell as $$
  select 1 from task where id = any(array(select distinct k >> 14 from unnest(p_key) k))
   order by id for no key update;
$$;

create or replace function stepwell.new_token() returns bigint language sql volatile as $$
  select (random() * 9e15)::bigint
$$;
