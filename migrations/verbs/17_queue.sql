-- Makes the queues that tasks of these definitions need at these priorities (null: the definition's own, which
-- is there). Those that two make at once are made by one of them; the other waits for it.
--
-- Locks   the new queues, in one order for all: before anything else is locked.
-- Answers how many it made: step-services must learn of them.
create or replace function stepwell.add_queues(p_definition int[], p_priority smallint[])
  returns int language sql volatile set search_path = stepwell as $$
  with n as (
    insert into queue (definition, namespace, handler, requires, priority)
    select distinct q.definition, q.namespace, q.handler, q.requires, w.priority
      from (select distinct * from unnest(p_definition, p_priority) w(definition, priority) where priority is not null) w,
           lateral (select * from queue where definition = w.definition offset 0) q
     where not exists (select from queue o
                        where o.definition = q.definition and o.handler = q.handler and o.requires = q.requires
                          and o.priority = w.priority)
     order by 1, 3, 4, 5
    on conflict do nothing
    returning 1)
  select count(*)::int from n
$$;

-- The queue beside this one at that priority.
create or replace function stepwell.queue_at(p_queue int, p_priority smallint)
  returns int language sql stable set search_path = stepwell as $$
  select n.id
    from queue q,
         lateral (select id from queue
                   where definition = q.definition and handler = q.handler and requires = q.requires
                     and priority = p_priority offset 0) n
   where q.id = p_queue
$$;

-- Pauses definitions, or lets them go on: all versions of one, those that come later included; p_name '' = all
-- of the namespace. Whoever leases holds this lock too, shared and before any other: after this commits nothing
-- of them is leased.
--
-- Locks   the pauses: waits for those who lease, who wait for it.
-- Answers how many versions of definitions it covers (0: there are none, and nothing was done), and whether it
--         was paused before.
create or replace function stepwell.pause_definitions(
    p_namespace text, p_name text, p_paused bool, p_note text, p_at timestamptz default null,
    out covered_n int, out was_paused bool)
  language plpgsql volatile set search_path = stepwell as $$
begin
  perform pg_advisory_xact_lock(45);
  select count(*)::int from definition where namespace = p_namespace and p_name in ('', name) into covered_n;
  was_paused := exists (select from pause where namespace = p_namespace and name = p_name);
  if covered_n = 0 and not was_paused or was_paused = p_paused then return; end if;
  if p_paused then
    insert into pause (namespace, name, note, at)
    values (p_namespace, p_name, p_note, coalesce(p_at, clock_timestamp()));
  else
    delete from pause where namespace = p_namespace and name = p_name;
  end if;
  update definition d set paused = not paused
   where namespace = p_namespace and p_name in ('', name)
     and paused <> exists (select from pause p where p.namespace = d.namespace and p.name in ('', d.name));
end $$;
