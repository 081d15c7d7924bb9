-- The partitions of the log: made ahead of its head, dropped behind it, oldest first.

-- The partitions, oldest first: the first position of each, the first that is beyond it, and whether it is being
-- detached: then nobody who looks into the log from now on sees it.
create or replace function stepwell.event_partitions()
  returns table (r_id oid, r_from bigint, r_to bigint, r_going bool)
  language sql stable set search_path = stepwell as $$
  select p.id, coalesce(substring(p.bounds from $x$FROM \('(\d+)'\)$x$)::bigint, 0),
         coalesce(substring(p.bounds from $x$TO \('(\d+)'\)$x$)::bigint, 9223372036854775807), p.going
    from (select c.oid id, pg_get_expr(c.relpartbound, c.oid) bounds, i.inhdetachpending going
            from pg_inherits i join pg_class c on c.oid = i.inhrelid
           where i.inhparent = 'event'::regclass) p
   order by 2
$$;

-- Keeps partitions ahead of the head: two whole ones. Made apart and attached, because making one in place
-- would stall appends. Answers how many it made.
create or replace function stepwell.extend_event(p_size bigint default 33554432)
  returns int language plpgsql volatile set search_path = stepwell as $$
declare
  v_head bigint;
  v_next bigint;
  v_name text;
  v_made int := 0;
begin
  if not pg_try_advisory_xact_lock(43) then return 0; end if;
  select case when is_called then last_value else 0 end from position into v_head;
  select coalesce(max(r_to), 0) from event_partitions() into v_next;
  while v_next < v_head + 2 * p_size loop
    v_name := format('event_%s', lpad(v_next::text, 19, '0'));
    execute format('create table %I (like event including defaults including constraints)', v_name);
    execute format('alter table %I add primary key (position)', v_name);
    execute format('create index on %I (task, (position + 0))', v_name);
    execute format('alter table event attach partition %I for values from (%s) to (%s)',
                   v_name, v_next, v_next + p_size);
    v_next := v_next + p_size;
    v_made := v_made + 1;
  end loop;
  return v_made;
end $$;

-- The oldest partition without its part of the index `event_task`: it was made before there was one. Null: there is none.
-- Answers it, and the name its part is to have.
create or replace function stepwell.unindexed_event(out r_table text, out r_index text)
  language sql stable set search_path = stepwell as $$
  select format('stepwell.%I', c.relname), format('%I', c.relname || '_task')
    from event_partitions() p join pg_class c on c.oid = p.r_id
   where not p.r_going
     and not exists (select from pg_index i join pg_inherits h on h.inhrelid = i.indexrelid
                      where i.indrelid = p.r_id and h.inhparent = 'event_task'::regclass)
   order by p.r_from limit 1
$$;

-- The place before the first event that is kept: whoever has come so far has missed nothing, whoever has not may
-- have. Places lie between two commits: of one that a dropped partition had a part of, nothing is kept.
create or replace function stepwell.earliest()
  returns bigint language plpgsql stable set search_path = stepwell as $$
declare
  v_from  bigint;
  v_batch bigint;
begin
  select r_from from event_partitions() where not r_going limit 1 into v_from;
  select batch from event where position = v_from and batch < v_from into v_batch;
  if v_batch is null then return greatest(v_from - 1, 0); end if;
  -- The end of that commit.
  return (select position from event
           where position >= v_from
             and position < coalesce((select position from event where position > v_from and batch > v_batch
                                       order by position limit 1), 9223372036854775807)
           order by position desc limit 1);
end $$;

-- The next move that drops what is old. A partition is old when its last event is older than p_age_s seconds, or
-- while the whole log takes more than p_bytes (0: no matter). The one that has the last event, and those ahead of
-- it, never are.
--
-- Answers the partition and the move: 1 mark and detach it, 2 finish what was begun of that, 3 drop it. Null: nothing
-- is to be done. Only tables that were marked are dropped, so one that somebody detached is his.
create or replace function stepwell.old_event(
    p_age_s bigint, p_bytes bigint, p_at timestamptz default null, out r_table text, out r_move smallint)
  language plpgsql stable set search_path = stepwell as $$
declare
  v_at   timestamptz := coalesce(p_at, clock_timestamp());
  v_id   oid;
  v_head bigint;
  v_last timestamptz;
begin
  select c.oid, 3 from pg_class c
   where c.relnamespace = 'stepwell'::regnamespace and c.relkind = 'r' and c.relname ~ '^event_\d{19}$'
     and obj_description(c.oid, 'pg_class') = 'old' and not c.relispartition
     and not exists (select from pg_inherits i where i.inhrelid = c.oid)
   order by c.relname limit 1
    into v_id, r_move;
  if v_id is null then
    select r_id, 2 from event_partitions() where r_going limit 1 into v_id, r_move;
  end if;
  if v_id is null then
    select position from event order by position desc limit 1 into v_head;
    select r_id, 1 from (select * from event_partitions() limit 1) p where r_to <= v_head into v_id, r_move;
    if v_id is null then r_move := null; return; end if;
    execute format('select at from %s order by position desc limit 1', v_id::regclass) into v_last;
    if not (p_age_s > 0 and coalesce(v_last < v_at - p_age_s * interval '1 s', true)
            or p_bytes > 0 and p_bytes < (select sum(pg_total_relation_size(r_id)) from event_partitions())) then
      r_move := null;
      return;
    end if;
  end if;
  select format('%I.%I', relnamespace::regnamespace, relname) from pg_class where oid = v_id into r_table;
end $$;
