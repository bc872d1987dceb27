// Symbol visibility of the shared library. Everything is hidden but what carries TREADLE_API.
#pragma once

#if defined(TREADLE_STATIC)
#define TREADLE_API
#elif defined(_WIN32)
#ifdef TREADLE_BUILDING
#define TREADLE_API __declspec(dllexport)
#else
#define TREADLE_API __declspec(dllimport)
#endif
#else
#define TREADLE_API __attribute__((visibility("default")))
#endif
