// Streaming clients of one OpenAI-compatible endpoint, on one thread: takes a hundredth of the time of a Python client.
//
// Clients are on other machines, and these shall take as little as they can of the cores that answer them: a server sends a step's
// tokens one after the other, and if each woke us, we would stop it as often. So when one has come, the others' have a moment
// before all are read, and a token's time, which is when it is read, is late by so much at most: less than any step of many
// sequences takes. The token of a single client is read at once.
//
//     load PORT FILE
//
// FILE has a request's JSON body a line; all are sent at once, each on a connection of its own. Prints the tokens that came
// while every client was being answered (after the last client's first token, before the first client's last), the seconds
// that took, and the worst client's seconds to its first token.

#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

using Clock = std::chrono::steady_clock;

constexpr std::chrono::milliseconds MOMENT{1};

static double now() { return std::chrono::duration<double>(Clock::now().time_since_epoch()).count(); }

static void fail(const std::string &what) {
    std::fprintf(stderr, "load: %s\n", what.c_str());
    std::exit(1);
}

struct Client {
    int socket;
    std::string pending; // what came of an event that is not whole
    std::vector<double> tokens;
    bool done = false;
};

static int connect_to(int port) {
    const int made = socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (connect(made, reinterpret_cast<sockaddr *>(&address), sizeof address)) fail("no connection");
    const int yes = 1;
    setsockopt(made, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    return made;
}

// Each event with text is one token: the models of benchmarks have a word a token.
static void read_events(Client &client, double at) {
    size_t begin = 0, end;
    while ((end = client.pending.find("\n\n", begin)) != std::string::npos) {
        const std::string event = client.pending.substr(begin, end - begin);
        begin = end + 2;
        if (event.find("data: [DONE]") != std::string::npos) client.done = true;
        else if (event.find("\"text\":\" ") != std::string::npos) client.tokens.push_back(at);
        else if (event.find("\"error\"") != std::string::npos) fail(event);
    }
    client.pending.erase(0, begin);
}

int main(int, char **arguments) {
    const int port = std::atoi(arguments[1]);
    std::vector<std::string> bodies;
    std::ifstream file(arguments[2]);
    for (std::string line; std::getline(file, line);) bodies.push_back(line);
    std::vector<Client> clients;
    for (size_t index = 0; index < bodies.size(); ++index) clients.push_back({connect_to(port), {}, {}});
    const double start = now();
    for (size_t index = 0; index < bodies.size(); ++index) {
        const std::string request = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                                    "Connection: close\r\nContent-Length: " + std::to_string(bodies[index].size()) + "\r\n\r\n" + bodies[index];
        if (write(clients[index].socket, request.data(), request.size()) != static_cast<ssize_t>(request.size())) fail("a request was not taken");
    }
    const int watched = epoll_create1(0);
    for (Client &client : clients) {
        epoll_event event{EPOLLIN, {.ptr = &client}};
        epoll_ctl(watched, EPOLL_CTL_ADD, client.socket, &event);
    }
    std::vector<epoll_event> come(clients.size());
    size_t open = clients.size();
    static char buffer[1 << 16];
    while (open) {
        int ready = epoll_wait(watched, come.data(), static_cast<int>(come.size()), -1);
        if (ready < static_cast<int>(open)) {
            std::this_thread::sleep_for(MOMENT);
            ready = epoll_wait(watched, come.data(), static_cast<int>(come.size()), 0);
        }
        for (int index = 0; index < ready; ++index) {
            Client &client = *static_cast<Client *>(come[index].data.ptr);
            const ssize_t count = read(client.socket, buffer, sizeof buffer);
            if (count <= 0) fail("an answer broke off: " + client.pending);
            client.pending.append(buffer, count);
            read_events(client, now());
            if (!client.done) continue;
            epoll_ctl(watched, EPOLL_CTL_DEL, client.socket, nullptr);
            --open;
        }
    }
    double from = 0, to = 1e300, first = 0;
    for (const Client &client : clients) {
        if (client.tokens.size() < 2) fail("an answer has no two tokens");
        from = std::max(from, client.tokens.front());
        to = std::min(to, client.tokens.back());
        first = std::max(first, client.tokens.front() - start);
    }
    size_t tokens = 0;
    for (const Client &client : clients)
        tokens += std::count_if(client.tokens.begin(), client.tokens.end(), [&](double at) { return at > from && at <= to; });
    std::printf("%zu %.6f %.6f\n", tokens, to - from, first);
}
