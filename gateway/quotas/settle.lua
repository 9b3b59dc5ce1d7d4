-- Change what a charge took, with no question of room, and end its leases.
-- KEYS: the state of each limit.
-- ARGV: the lease's name, the time of the charge in microseconds; then for each limit: kind, change, what taking one adds.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local day = math.floor(time[1] / 86400)
local charged_on = math.floor(tonumber(ARGV[2]) / 86400000000)

for i, key in ipairs(KEYS) do
  local at = 2 + (i - 1) * 3
  local kind, change, each = ARGV[at + 1], tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3])
  if kind == 'leases' then
    redis.call('ZREM', key, ARGV[1])
  elseif change ~= 0 and kind == 'bucket' then
    local debt = math.max(tonumber(redis.call('GET', key) or 0) - now, 0) + change * each
    if debt > 0 then
      redis.call('SET', key, string.format('%.2f', now + debt), 'PX', math.ceil(debt / 1000) + 1000)
    else
      redis.call('DEL', key)
    end
  elseif change ~= 0 and charged_on == day then
    local on, used = string.match(redis.call('GET', key) or '0:0', '^(%d+):(.+)$')
    local sum = (tonumber(on) == day and tonumber(used) or 0) + change
    redis.call('SET', key, string.format('%d:%.2f', day, math.max(sum, 0)), 'EX', 86400 - time[1] % 86400 + 60)
  end
end
return 1
