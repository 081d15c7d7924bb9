-- Durable subscriptions. A partition has one reader at a time: the stream that holds it, by its lease. Its epoch
-- is the fence: it changes when another stream takes the partition, when events are to be delivered again, and
-- when the place is moved by hand, and an ack of what was delivered under another epoch changes nothing.
--
-- Locks   the subscription, then its partitions by number; the append is never waited for.

-- The epoch after this one: higher, and higher than any of a copy of the database that was made before now.
create or replace function stepwell.next_epoch(p_epoch bigint, p_at timestamptz)
  returns bigint language sql immutable set search_path = stepwell as $$
  select greatest(p_epoch + 1, (extract(epoch from p_at) * 1000000)::bigint)
$$;

-- How long after the n-th failure an event is delivered again: 1 s, then twice as long each time, 5 min at most.
create or replace function stepwell.redelivery_ms(p_attempt int)
  returns bigint language sql immutable set search_path = stepwell as $$
  select least(300000, 1000 * power(2, least(p_attempt, 20) - 1))::bigint
$$;

-- Makes a subscription that goes on after p_place, unless there are p_most.
--
-- Answers its id; whether it was made now; if not, whether the one of this name is the same. An id of null:
--         there are too many.
create or replace function stepwell.make_subscription(
    p_name text, p_filter bytea, p_ordered bool, p_max_attempts int, p_ack_deadline_ms bigint, p_partitions int,
    p_delivery bytea, p_config text, p_namespace text, p_definition text, p_disabled bool, p_place bigint, p_most int,
    p_at timestamptz default null, out r_id int, out r_made bool, out r_same bool)
  language plpgsql volatile set search_path = stepwell as $$
begin
  r_made := false; r_same := false;
  perform pg_advisory_xact_lock(50);
  select id, (filter, ordered, max_attempts, ack_deadline_ms, partitions, config, namespace, definition, disabled)
           = (p_filter, p_ordered, p_max_attempts, p_ack_deadline_ms, p_partitions, p_config, p_namespace, p_definition,
              p_disabled)
           and delivery is not distinct from p_delivery
    from subscription where name = p_name into r_id, r_same;
  if r_id is not null then return; end if;
  if (select count(*) from subscription) >= p_most then return; end if;
  insert into subscription (name, filter, ordered, max_attempts, ack_deadline_ms, partitions, delivery, config, namespace,
                            definition, disabled, created_at)
  values (p_name, p_filter, p_ordered, p_max_attempts, p_ack_deadline_ms, p_partitions, p_delivery, p_config, p_namespace,
          p_definition, p_disabled, coalesce(p_at, clock_timestamp()))
  returning id into r_id;
  insert into subscription_partition (subscription, no, place) select r_id, i, p_place from generate_series(0, p_partitions - 1) i;
  r_made := true; r_same := true;
end $$;

-- Makes or changes declared subscriptions, all of them or none; the arrays have one entry for each, and names are
-- all different. One that is new goes on after its place of p_place. One that changes keeps its places; nobody
-- holds it afterwards, and what was delivered and not acked comes again, as the new filter has it. With p_prune,
-- declared ones that are not among these are deleted.
--
-- Answers what is wrong: 1 the one at r_i is there and was not declared, or is of another definition; 2 its
--         partitions would change while events are parked; 3 there would be more than p_most; 0 nothing. And what
--         became of each: 1 made, 2 changed, 3 unchanged; and who was pruned.
create or replace function stepwell.apply_subscriptions(
    p_name text[], p_filter bytea[], p_ordered bool[], p_max_attempts int[], p_ack_deadline_ms bigint[],
    p_partitions int[], p_delivery bytea[], p_config text[], p_namespace text[], p_definition text[],
    p_disabled bool[], p_place bigint[], p_prune bool, p_most int, p_at timestamptz default null,
    out r_fault int, out r_i int, out r_outcome int[], out r_pruned text[])
  language plpgsql volatile set search_path = stepwell as $$
declare
  v_at      timestamptz;
  v_pruned  int[];
  v_changed int[];
begin
  perform pg_advisory_xact_lock(50);
  perform 1 from subscription where name = any(p_name) or p_prune and declared order by id for update;
  perform 1 from subscription_partition where subscription in (
    select id from subscription where name = any(p_name) or p_prune and declared)
   order by subscription, no for update;
  v_at    := coalesce(p_at, clock_timestamp());
  r_fault := 0;
  select array_agg(case
           when s.id is null then 1
           when (s.filter, s.ordered, s.max_attempts, s.ack_deadline_ms, s.partitions, s.config, s.disabled)
              = (i.filter, i.ordered, i.max_attempts, i.ack_deadline_ms, i.partitions, i.config, i.disabled)
              and s.delivery is not distinct from i.delivery then 3
           else 2 end order by i.i),
         min(i.i) filter (where not s.declared or (s.namespace, s.definition) <> (i.namespace, i.definition)),
         array_agg(s.id)
    from unnest(p_name, p_filter, p_ordered, p_max_attempts, p_ack_deadline_ms, p_partitions, p_delivery, p_config,
                p_namespace, p_definition, p_disabled)
         with ordinality i(name, filter, ordered, max_attempts, ack_deadline_ms, partitions, delivery, config,
                           namespace, definition, disabled, i)
         left join subscription s on s.name = i.name
    into r_outcome, r_i, v_changed;
  if r_i is not null then r_fault := 1; return; end if;
  select min(i.i)
    from unnest(p_name, p_partitions) with ordinality i(name, partitions, i)
         join subscription s on s.name = i.name and s.partitions <> i.partitions
   where exists (select from parked_event e where e.subscription = s.id)
    into r_i;
  if r_i is not null then r_fault := 2; return; end if;
  select array_agg(id), array_agg(name order by name) from subscription
   where p_prune and declared and name <> all(p_name)
    into v_pruned, r_pruned;
  r_pruned := coalesce(r_pruned, '{}');
  if (select count(*) from subscription) - cardinality(r_pruned)
     + cardinality(array_positions(r_outcome, 1)) > p_most then
    r_fault := 3;
    return;
  end if;

  delete from alert where subscription = any(v_pruned);
  delete from alert_change where subscription = any(v_pruned);
  delete from parked_event where subscription = any(v_pruned);
  delete from subscription_partition where subscription = any(v_pruned);
  delete from subscription where id = any(v_pruned);

  with n as (
    insert into subscription (name, filter, ordered, max_attempts, ack_deadline_ms, partitions, delivery, config,
                              namespace, definition, disabled, declared, created_at)
    select i.name, i.filter, i.ordered, i.max_attempts, i.ack_deadline_ms, i.partitions, i.delivery, i.config,
           i.namespace, i.definition, i.disabled, true, v_at
      from unnest(p_name, p_filter, p_ordered, p_max_attempts, p_ack_deadline_ms, p_partitions, p_delivery, p_config,
                  p_namespace, p_definition, p_disabled, r_outcome)
           i(name, filter, ordered, max_attempts, ack_deadline_ms, partitions, delivery, config, namespace, definition,
             disabled, outcome)
     where i.outcome = 1
    returning id, name, partitions)
  insert into subscription_partition (subscription, no, place)
  select n.id, no, i.place
    from n join unnest(p_name, p_place) i(name, place) on i.name = n.name,
         lateral generate_series(0, n.partitions - 1) no;

  select array_agg(s.id) from subscription s join unnest(p_name, r_outcome) i(name, outcome) on i.name = s.name
   where i.outcome = 2
    into v_changed;
  update subscription_partition set holder = null, reader = null, lease_until = null, epoch = next_epoch(epoch, v_at)
   where subscription = any(v_changed);
  -- With another number of partitions all go on after the place that is furthest behind.
  with w as (
    select s.id, i.partitions, m.place, m.epoch
      from subscription s join unnest(p_name, p_partitions) i(name, partitions) on i.name = s.name,
           lateral (select min(place) place, max(epoch) epoch from subscription_partition where subscription = s.id) m
     where s.id = any(v_changed) and s.partitions <> i.partitions),
  d as (
    delete from subscription_partition p using w where p.subscription = w.id and p.no >= w.partitions),
  u as (
    update subscription_partition p
       set place = w.place, epoch = w.epoch, failing = null, attempt = 0, not_before = null
      from w where p.subscription = w.id and p.no < w.partitions)
  insert into subscription_partition (subscription, no, place, epoch)
  select w.id, no, w.place, w.epoch from w, lateral generate_series(0, w.partitions - 1) no
   where not exists (select from subscription_partition p where p.subscription = w.id and p.no = no.no);
  update subscription s
     set filter = i.filter, ordered = i.ordered, max_attempts = i.max_attempts, ack_deadline_ms = i.ack_deadline_ms,
         partitions = i.partitions, delivery = i.delivery, config = i.config, disabled = i.disabled,
         revision = s.revision + 1
    from unnest(p_name, p_filter, p_ordered, p_max_attempts, p_ack_deadline_ms, p_partitions, p_delivery, p_config,
                p_disabled)
         i(name, filter, ordered, max_attempts, ack_deadline_ms, partitions, delivery, config, disabled)
   where s.name = i.name and s.id = any(v_changed);
end $$;

-- Gives a stream partitions that nobody holds or whose lease is over: those of p_wanted (none: any), p_most at
-- most. With p_again also what another stream of the same reader holds.
--
-- Answers whether the subscription is there, and what was taken: where it goes on, and if an event of it failed,
--         how often and for how long it rests still.
create or replace function stepwell.take_partitions(
    p_subscription int, p_reader text, p_holder bigint, p_wanted int[], p_most int, p_again bool, p_lease_ms bigint,
    p_at timestamptz default null, out r_found bool, out r_no int[], out r_epoch bigint[], out r_place bigint[],
    out r_failing bigint[], out r_attempt int[], out r_rest_ms bigint[])
  language plpgsql volatile set search_path = stepwell as $$
declare
  v_paused bool;
  v_free   int[];
  v_at     timestamptz;
begin
  select paused or disabled from subscription where id = p_subscription for share into v_paused;
  r_found := found;
  if not r_found or v_paused then return; end if;
  v_at := coalesce(p_at, clock_timestamp());
  select array_agg(no) from (
    select no from subscription_partition
     where subscription = p_subscription and (cardinality(p_wanted) = 0 or no = any(p_wanted))
       and (holder is null or lease_until < v_at or p_again and reader = p_reader and holder <> p_holder)
     order by no limit p_most for update skip locked) f
    into v_free;
  with u as (
    update subscription_partition
       set holder = p_holder, reader = p_reader, lease_until = v_at + p_lease_ms * interval '1 ms',
           epoch = next_epoch(epoch, v_at)
     where subscription = p_subscription and no = any(v_free)
    returning *)
  select array_agg(no order by no), array_agg(epoch order by no), array_agg(place order by no),
         array_agg(coalesce(failing, 0) order by no), array_agg(attempt order by no),
         array_agg(greatest(0, ceil(extract(epoch from coalesce(not_before, v_at) - v_at) * 1000))::bigint order by no)
    from u into r_no, r_epoch, r_place, r_failing, r_attempt, r_rest_ms;
end $$;

-- Extends what the streams of a process hold, and moves the places of those of which all up to p_done is done.
-- The arrays are sorted by subscription and number.
--
-- Answers for each by its index: whether it is held still; else whether another stream of its reader has it; its
--         epoch and place; the event that failed, how often, and for how long it rests still; in how long an event
--         is to be delivered again (null: none is).
create or replace function stepwell.extend_partitions(
    p_subscription int[], p_no int[], p_holder bigint[], p_reader text[], p_epoch bigint[], p_done bigint[],
    p_lease_ms bigint, p_at timestamptz default null)
  returns table (r_i int, r_held bool, r_replaced bool, r_epoch bigint, r_place bigint, r_failing bigint,
                 r_attempt int, r_rest_ms bigint, r_again_ms bigint)
  language plpgsql volatile set search_path = stepwell as $$
declare
  v_at timestamptz;
begin
  perform 1 from unnest(p_subscription, p_no, p_holder) i(subscription, no, holder),
         lateral (select no from subscription_partition p
                   where p.subscription = i.subscription and p.no = i.no and p.holder = i.holder
                     for update offset 0) p;
  v_at := coalesce(p_at, clock_timestamp());
  update subscription_partition p
     set lease_until = v_at + p_lease_ms * interval '1 ms',
         place = case when p.epoch = n.epoch then greatest(p.place, n.done) else p.place end
    from (select i.epoch, i.done, (select ctid from subscription_partition p
                                    where p.subscription = i.subscription and p.no = i.no and p.holder = i.holder) spot
            from unnest(p_subscription, p_no, p_holder, p_epoch, p_done) i(subscription, no, holder, epoch, done)) n
   where p.ctid = n.spot;
  return query
  select i.i::int, p.holder is not distinct from i.holder, p.holder <> i.holder and p.reader = i.reader,
         p.epoch, p.place, coalesce(p.failing, 0), p.attempt,
         greatest(0, ceil(extract(epoch from coalesce(p.not_before, v_at) - v_at) * 1000))::bigint,
         (select greatest(0, ceil(extract(epoch from e.due - v_at) * 1000))::bigint from parked_event e
           where e.subscription = i.subscription and e.partition = i.no and e.state = 2
           order by e.due limit 1)
    from unnest(p_subscription, p_no, p_holder, p_reader) with ordinality i(subscription, no, holder, reader, i),
         lateral (select * from subscription_partition p
                   where p.subscription = i.subscription and p.no = i.no offset 0) p;
end $$;

-- Gives up what a stream holds, for others to take at once.
create or replace function stepwell.release_partitions(p_subscription int, p_holder bigint)
  returns int language plpgsql volatile set search_path = stepwell as $$
declare
  v_n int;
begin
  perform 1 from subscription_partition where subscription = p_subscription and holder = p_holder order by no for update;
  update subscription_partition set holder = null, reader = null, lease_until = null
   where subscription = p_subscription and holder = p_holder;
  get diagnostics v_n = row_count;
  return v_n;
end $$;

-- Acks of a partition all up to p_up_to, and of what was delivered again these positions.
--
-- Answers the epoch of the partition (null: there is none), which must be p_epoch, and the last position, which
--         must not be lower than p_up_to: else nothing was done; its place.
create or replace function stepwell.ack_events(
    p_name text, p_no int, p_epoch bigint, p_up_to bigint, p_positions bigint[],
    out r_found bool, out r_epoch bigint, out r_head bigint, out r_place bigint)
  language plpgsql volatile set search_path = stepwell as $$
declare
  v_subscription int;
begin
  select id from subscription where name = p_name into v_subscription;
  r_found := found;
  select epoch, place from subscription_partition where subscription = v_subscription and no = p_no for update
    into r_epoch, r_place;
  select coalesce((select position from event order by position desc limit 1), 0) into r_head;
  if r_epoch is null or r_epoch <> p_epoch or p_up_to > r_head then return; end if;
  if p_up_to > r_place then
    update subscription_partition
       set place      = p_up_to,
           attempt    = case when failing <= p_up_to then 0 else attempt end,
           not_before = case when failing <= p_up_to then null else not_before end,
           failing    = case when failing <= p_up_to then null else failing end
     where subscription = v_subscription and no = p_no;
    r_place := p_up_to;
  end if;
  delete from parked_event
   where subscription = v_subscription and partition = p_no and position = any(p_positions) and state = 2;
end $$;

-- An event of a partition failed for the p_attempt-th time: it is delivered again p_wait_ms later (null: see
-- redelivery_ms), or parked if that was the last time. If order matters, the partition stops there and all after
-- its place is delivered again under a new epoch; else the event alone is.
--
-- Answers the epoch of the partition after it (null: there is none), and whether it was p_epoch before, else
--         nothing was done; whether there is such an event, whether it was acked before, whether it could not be
--         kept because p_most are; how often it has failed, whether it is parked now, and how long it rests.
create or replace function stepwell.nack_event(
    p_name text, p_no int, p_epoch bigint, p_position bigint, p_attempt int, p_reason text, p_wait_ms bigint,
    p_most int, p_at timestamptz default null, out r_found bool, out r_epoch bigint, out r_current bool,
    out r_known bool, out r_acked bool, out r_full bool, out r_attempt int, out r_parked bool, out r_rest_ms bigint)
  language plpgsql volatile set search_path = stepwell as $$
declare
  v_s   subscription;
  v_p   subscription_partition;
  v_e   parked_event;
  v_at  timestamptz;
  v_uid uuid;
begin
  r_current := false; r_known := false; r_acked := false; r_full := false; r_parked := false; r_attempt := 0; r_rest_ms := 0;
  select * from subscription where name = p_name into v_s;
  r_found := found;
  select * from subscription_partition where subscription = v_s.id and no = p_no for update into v_p;
  r_epoch   := v_p.epoch;
  r_current := v_p.epoch is not distinct from p_epoch and found;
  if not r_current then return; end if;
  v_at := coalesce(p_at, clock_timestamp());
  select uid from event where position = p_position into v_uid;
  r_known := found;
  if not r_known then return; end if;
  r_full := (select count(*) from (select from parked_event where subscription = v_s.id limit p_most) x) >= p_most;
  select * from parked_event where subscription = v_s.id and partition = p_no and position = p_position into v_e;
  if found then                                       -- it was delivered alone
    r_full    := false;
    r_attempt := v_e.attempt;
    r_parked  := v_e.state = 1;
    r_rest_ms := greatest(0, extract(epoch from v_e.due - v_at) * 1000);
    if r_parked or p_attempt <= v_e.attempt then return; end if;      -- said before
    r_attempt := v_e.attempt + 1;
    r_parked  := r_attempt >= v_s.max_attempts;
    r_rest_ms := case when r_parked then 0 else coalesce(p_wait_ms, redelivery_ms(r_attempt)) end;
    update parked_event
       set attempt = r_attempt, reason = p_reason, due = v_at + r_rest_ms * interval '1 ms',
           state = case when r_parked then 1 else 2 end
     where subscription = v_s.id and partition = p_no and position = p_position;
    if r_parked and v_s.ordered then
      update parked_event set state = 1 where subscription = v_s.id and partition = p_no and uid = v_e.uid;
    end if;
    return;
  end if;
  if p_position <= v_p.place then r_full := false; r_acked := true; return; end if;
  r_attempt := case when v_p.failing = p_position then v_p.attempt else 0 end + 1;
  r_parked  := r_attempt >= v_s.max_attempts and not r_full;
  r_rest_ms := case when r_parked then 0 else coalesce(p_wait_ms, redelivery_ms(r_attempt)) end;
  if v_s.ordered then
    r_full  := r_full and r_attempt >= v_s.max_attempts;
    r_epoch := next_epoch(v_p.epoch, v_at);
    update subscription_partition
       set epoch      = r_epoch,
           failing    = case when r_parked then null else p_position end,
           attempt    = case when r_parked then 0 else r_attempt end,
           not_before = case when r_parked then null else v_at + r_rest_ms * interval '1 ms' end
     where subscription = v_s.id and no = p_no;
    if not r_parked then return; end if;
  elsif r_full then
    r_attempt := 0; r_rest_ms := 0;
    return;
  end if;
  insert into parked_event (subscription, partition, position, uid, state, attempt, due, reason, at)
  values (v_s.id, p_no, p_position, v_uid, case when r_parked then 1 else 2 end, r_attempt,
          v_at + r_rest_ms * interval '1 ms', p_reason, v_at);
end $$;

-- Events that may follow parked ones of their tasks are kept with them, unless more than p_most would be kept.
--
-- Answers whether the epoch is still p_epoch; whether there is no room, and nothing was kept; the positions of
--         those that follow none, which may be delivered.
create or replace function stepwell.follow_parked(
    p_subscription int, p_no int, p_epoch bigint, p_positions bigint[], p_uids uuid[], p_most int,
    p_at timestamptz default null, out r_current bool, out r_full bool, out r_passed bigint[])
  language plpgsql volatile set search_path = stepwell as $$
declare
  v_at timestamptz;
begin
  r_full := false;
  select epoch = p_epoch from subscription_partition where subscription = p_subscription and no = p_no for update into r_current;
  r_current := coalesce(r_current, false);
  if not r_current then return; end if;
  v_at := coalesce(p_at, clock_timestamp());
  select array_agg(i.position order by i.position) from unnest(p_positions, p_uids) i(position, uid)
   where not exists (select from parked_event e where e.subscription = p_subscription and e.partition = p_no
                                                  and e.uid = i.uid and e.position <= i.position)
    into r_passed;
  r_passed := coalesce(r_passed, '{}');
  r_full := (select count(*) from parked_event where subscription = p_subscription)
            + cardinality(p_positions) - cardinality(r_passed) > p_most;
  if r_full and cardinality(p_positions) > cardinality(r_passed) then return; end if;
  r_full := false;
  insert into parked_event (subscription, partition, position, uid, state, attempt, due, reason, at)
  select p_subscription, p_no, i.position, i.uid, f.state, 0, v_at, '', v_at
    from unnest(p_positions, p_uids) i(position, uid),
         lateral (select state from parked_event e
                   where e.subscription = p_subscription and e.partition = p_no and e.uid = i.uid
                   order by e.position limit 1) f
   where i.position <> all(r_passed)
  on conflict do nothing;
end $$;

-- Parked events are delivered again from now on, or dropped: those at these positions (none: all). If order
-- matters, what is delivered again is all that is parked of their tasks.
--
-- Answers how many; null: there is no such subscription.
create or replace function stepwell.replay_parked(
    p_name text, p_positions bigint[], p_drop bool, p_at timestamptz default null)
  returns int language plpgsql volatile set search_path = stepwell as $$
declare
  v_s  subscription;
  v_at timestamptz;
  v_n  int;
begin
  select * from subscription where name = p_name into v_s;
  if not found then return null; end if;
  perform 1 from subscription_partition where subscription = v_s.id order by no for update;
  v_at := coalesce(p_at, clock_timestamp());
  if p_drop then
    delete from parked_event
     where subscription = v_s.id and state = 1 and (cardinality(p_positions) = 0 or position = any(p_positions));
  else
    update parked_event set state = 2, attempt = 0, due = v_at
     where subscription = v_s.id and state = 1
       and (cardinality(p_positions) = 0 or position = any(p_positions)
            or v_s.ordered and uid = any(array(select uid from parked_event
                                                where subscription = v_s.id and position = any(p_positions))));
  end if;
  get diagnostics v_n = row_count;
  return v_n;
end $$;

-- Changes a subscription; null leaves as it is. A filter, partitions and a place need one that is paused before.
-- Who is paused or disabled is read by nobody. With another number of partitions all go on after the place that is
-- furthest behind, and nothing may be parked. With another delivery or config nobody holds it afterwards, and what
-- was delivered and not acked comes again.
--
-- Answers whether it is there; whether it was paused; whether events are parked; whether it has a delivery. Nothing
--         was done if what was asked for needs otherwise.
create or replace function stepwell.change_subscription(
    p_name text, p_paused bool, p_filter bytea, p_max_attempts int, p_ack_deadline_ms bigint, p_partitions int,
    p_delivery bytea, p_config text, p_disabled bool, p_place bigint, p_at timestamptz default null,
    out r_found bool, out r_was_paused bool, out r_parked bool, out r_has_delivery bool)
  language plpgsql volatile set search_path = stepwell as $$
declare
  v_s     subscription;
  v_at    timestamptz;
  v_place bigint;
  v_epoch bigint;
  v_other bool;
begin
  r_parked := false;
  select * from subscription where name = p_name for update into v_s;
  r_found        := found;
  r_was_paused   := coalesce(v_s.paused, false);
  r_has_delivery := v_s.delivery is not null;
  if not r_found then return; end if;
  if not r_was_paused and (p_filter is not null or p_place is not null or p_partitions is not null)
     or not r_has_delivery and (p_delivery is not null or p_config <> '') then
    return;
  end if;
  perform 1 from subscription_partition where subscription = v_s.id order by no for update;
  v_at := coalesce(p_at, clock_timestamp());
  if p_partitions <> v_s.partitions then
    r_parked := exists (select from parked_event where subscription = v_s.id);
    if r_parked then return; end if;
    select min(place), next_epoch(max(epoch), v_at) from subscription_partition where subscription = v_s.id
      into v_place, v_epoch;
    delete from subscription_partition where subscription = v_s.id;
    insert into subscription_partition (subscription, no, place, epoch)
    select v_s.id, i, v_place, v_epoch from generate_series(0, p_partitions - 1) i;
  end if;
  v_other := coalesce(p_delivery <> v_s.delivery, false) or coalesce(p_config <> v_s.config, false);
  update subscription
     set paused = coalesce(p_paused, paused), filter = coalesce(p_filter, filter),
         max_attempts = coalesce(p_max_attempts, max_attempts),
         ack_deadline_ms = coalesce(p_ack_deadline_ms, ack_deadline_ms), partitions = coalesce(p_partitions, partitions),
         delivery = coalesce(p_delivery, delivery), config = coalesce(p_config, config),
         disabled = coalesce(p_disabled, disabled),
         revision = revision + case when v_other or p_filter is not null or p_partitions is not null then 1 else 0 end
   where id = v_s.id;
  if v_other then
    update subscription_partition set epoch = next_epoch(epoch, v_at) where subscription = v_s.id;
  end if;
  if p_paused or p_disabled or v_other then
    update subscription_partition set holder = null, reader = null, lease_until = null where subscription = v_s.id;
  end if;
  if p_place is not null then
    update subscription_partition
       set place = p_place, epoch = next_epoch(epoch, v_at), failing = null, attempt = 0, not_before = null
     where subscription = v_s.id;
  end if;
end $$;

-- Forgets a subscription, and what is parked of it. Answers whether it was there.
create or replace function stepwell.delete_subscription(p_name text)
  returns bool language plpgsql volatile set search_path = stepwell as $$
declare
  v_id int;
begin
  select id from subscription where name = p_name for update into v_id;
  if not found then return false; end if;
  perform 1 from subscription_partition where subscription = v_id order by no for update;
  delete from alert where subscription = v_id;
  delete from alert_change where subscription = v_id;
  delete from parked_event where subscription = v_id;
  delete from subscription_partition where subscription = v_id;
  delete from subscription where id = v_id;
  return true;
end $$;

-- Counts an event of a definition, unless it or a later one was. The alert fires when the p_n last ones are within
-- p_window_s seconds, by the time of events. If it fired before, and was over by the time of this one, it is resolved
-- first. Nothing is counted while p_most changes are still to be told of.
--
-- Answers whether there was no room; how many changes it made.
create or replace function stepwell.count_alert(
    p_subscription int, p_namespace text, p_definition text, p_position bigint, p_event_at timestamptz, p_n int,
    p_window_s bigint, p_most int, out r_full bool, out r_changes int)
  language plpgsql volatile set search_path = stepwell as $$
declare
  v_a      alert;
  v_window interval := p_window_s * interval '1 s';
  v_first  timestamptz;
begin
  r_full := false; r_changes := 0;
  insert into alert values (p_subscription, p_namespace, p_definition, 0, '{}', false, 0) on conflict do nothing;
  select * from alert where subscription = p_subscription and namespace = p_namespace and definition = p_definition
    for update into v_a;
  if p_position <= v_a.position then return; end if;
  r_full := (select count(*) from alert_change where subscription = p_subscription) >= p_most;
  if r_full then return; end if;
  if v_a.firing then
    v_first := coalesce(v_a.seen[cardinality(v_a.seen) - p_n + 1], '-infinity') + v_window;
    if v_first <= p_event_at then
      v_a.firing := false; v_a.no := v_a.no + 1; r_changes := r_changes + 1;
      insert into alert_change
      values (p_subscription, p_namespace, p_definition, v_a.no, case when isfinite(v_first) then v_first else p_event_at end, 0);
    end if;
  end if;
  v_a.seen := v_a.seen || p_event_at;
  v_a.seen := v_a.seen[greatest(1, cardinality(v_a.seen) - p_n + 1):];
  if not v_a.firing and cardinality(v_a.seen) = p_n and v_a.seen[1] + v_window > p_event_at then
    v_a.firing := true; v_a.no := v_a.no + 1; r_changes := r_changes + 1;
    insert into alert_change values (p_subscription, p_namespace, p_definition, v_a.no, p_event_at, p_position);
  end if;
  update alert set position = p_position, seen = v_a.seen, firing = v_a.firing, no = v_a.no
   where subscription = p_subscription and namespace = p_namespace and definition = p_definition;
end $$;

-- Resolves alerts of a subscription whose window has passed with too few events in it, once all events up to then
-- are counted.
--
-- Answers in how long it is to be called again; null: when an alert has fired.
create or replace function stepwell.resolve_alerts(
    p_subscription int, p_n int, p_window_s bigint, p_at timestamptz default null)
  returns bigint language plpgsql volatile set search_path = stepwell as $$
declare
  v_at    timestamptz;
  v_next  timestamptz;
  v_due   timestamptz;
  v_a     alert;
  v_wait  bigint;
begin
  -- The first event that is not counted: what is due before it may be resolved.
  select e.at from subscription_partition p, lateral (
    select at from event where position > p.place order by position limit 1) e
   where p.subscription = p_subscription order by e.at limit 1 into v_next;
  v_at := coalesce(p_at, clock_timestamp());
  for v_a in select * from alert where subscription = p_subscription and firing order by namespace, definition for update loop
    v_due := coalesce(v_a.seen[cardinality(v_a.seen) - p_n + 1] + p_window_s * interval '1 s', v_at);
    if v_due <= v_at and (v_next is null or v_next > v_due) then
      update alert set firing = false, no = no + 1
       where subscription = p_subscription and namespace = v_a.namespace and definition = v_a.definition;
      insert into alert_change values (p_subscription, v_a.namespace, v_a.definition, v_a.no + 1, v_due, 0);
    else
      v_wait := least(v_wait, greatest(1000, ceil(extract(epoch from v_due - v_at) * 1000)::bigint));
    end if;
  end loop;
  return v_wait;
end $$;

-- A change of an alert was told of.
create or replace function stepwell.tell_alert(p_subscription int, p_namespace text, p_definition text, p_no int)
  returns bool language plpgsql volatile set search_path = stepwell as $$
begin
  delete from alert_change
   where subscription = p_subscription and namespace = p_namespace and definition = p_definition and no = p_no;
  return found;
end $$;
