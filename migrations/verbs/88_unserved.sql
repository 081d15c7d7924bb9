-- Since when a step has been ready that stands at this place of its queue. What became ready without an event of its
-- own - a timer released it, or its task got its concurrency key - was ready by its own time, or right after the
-- event before.
create or replace function stepwell.ready_since(p_id bigint, p_not_before timestamptz)
  returns timestamptz language sql stable set search_path = stepwell as $$
  select coalesce((select at from event where position = p_id),
                  greatest(p_not_before, (select at from event where position < p_id order by position desc limit 1)),
                  (select at from event where position > p_id order by position limit 1))
$$;

-- Tells of steps that have been ready for p_after_ms in queues that nobody serves: one event for each step and
-- attempt. It looks at p_n rows at most, as many of each queue, from behind a place on (p_id, p_key); a step that its
-- task does not let run now - it or its definition is paused, it is held or full - is passed.
--
-- Locks   tasks, the append.
-- Answers how many it told of; for each queue the place it came to, and whether it has more rows to look at; and in
--         how many milliseconds the first of those it saw will have been ready for so long (null: there is none).
create or replace function stepwell.unserved_steps(
    p_queue int[], p_id bigint[], p_key bigint[], p_after_ms bigint, p_n int, p_at timestamptz default null,
    out told_n int, out q_id bigint[], out q_key bigint[], out q_more bool[], out next_ms bigint)
  language plpgsql volatile set search_path = stepwell as $$
declare
  v_at    timestamptz := coalesce(p_at, clock_timestamp());
  v_due   timestamptz := v_at - p_after_ms * interval '1 ms';
  v_each  int := greatest(p_n / cardinality(p_queue), 1);
  v_key   bigint[];
  v_att   int[];
  v_since timestamptz[];
  v_ev    ev[];
begin
  told_n := 0;
  with r as materialized (
    select q.i, r.id, r.key, r.attempt,
           case when s.state = 1 and s.attempt = r.attempt and s.queue = q.queue and s.waiting_on = 0
                 and s.unserved is distinct from s.attempt
                then ready_since(r.id, s.not_before) end since
      from unnest(p_queue, p_id, p_key) with ordinality q(queue, id, key, i),
           lateral (select r.id, r.key, r.attempt from ready_step r
                     where r.queue = q.queue and (r.id, r.key) > (q.id, q.key)
                     order by r.queue, r.id, r.key limit v_each) r,
           lateral (select state, attempt, queue, waiting_on, unserved, not_before from step where key = r.key offset 0) s),
  young as (                                      -- the first of each queue that has not waited so long
    select distinct on (i) i, id, key, since from r where since > v_due order by i, id, key),
  last as (                                       -- and the last before it
    select distinct on (r.i) r.i, r.id, r.key
      from r left join young y on y.i = r.i
     where y.i is null or (r.id, r.key) < (y.id, y.key)
     order by r.i, r.id desc, r.key desc)
  select * from
      (select array_agg(coalesce(l.id, q.id) order by q.i), array_agg(coalesce(l.key, q.key) order by q.i),
              array_agg(y.i is null and (select count(*) from r where r.i = q.i) = v_each order by q.i),
              ceil(extract(epoch from min(y.since) - v_due) * 1000)::bigint
         from unnest(p_id, p_key) with ordinality q(id, key, i)
         left join last l on l.i = q.i left join young y on y.i = q.i) q,
      (select array_agg(key), array_agg(attempt), array_agg(since)
         from (select key, attempt, min(since) since from r where since <= v_due group by key, attempt) r) r
    into q_id, q_key, q_more, next_ms, v_key, v_att, v_since;
  if v_key is null then return; end if;

  perform 1 from task where id = any(array(select distinct k >> 14 from unnest(v_key) k)) order by id for no key update;
  with u as (
    update step s set unserved = s.attempt
      from (select r.since,
                   (select x.ctid from step x
                     where x.key = r.key and x.state = 1 and x.attempt = r.attempt and x.waiting_on = 0
                       and x.unserved is distinct from x.attempt and (x.not_before is null or x.not_before <= v_at)) place
              from unnest(v_key, v_att, v_since) r(key, attempt, since)
             where (select state in (1, 2) and not paused and not held and (max_parallel = 0 or running_n < max_parallel)
                           and not (select paused from definition where id = t.definition)
                      from task t where id = r.key >> 14)) r
     where s.ctid = r.place
    returning s.key, s.attempt, r.since)
  select array_agg((key >> 14, key & 16383, 48, 1, 1, attempt, null, since, null, null)::ev order by since, key)
    from u into v_ev;
  perform append(v_ev, null, p_at);
  told_n := coalesce(cardinality(v_ev), 0);
end $$;
