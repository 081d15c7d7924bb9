-- Nodes have leases: one that does not extend its own is declared dead, and another takes over what
-- its executors do not claim. A binary from before extends nothing: its nodes have an hour to be replaced.

alter table stepwell.node
  add column lease_until timestamptz not null default clock_timestamp() + interval '1 hour',
  add column taken_by    int,                        -- the node that walks its leases; only once retired
  add column walked      bigint not null default 0;  -- the last task of the walk so far
